"""The models that the structure benchmarks run on, with weights and inputs that tell errors apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.zoo_others import OTHERS

_MODULES = torchvision.models


def names(kind: str = "all") -> list[str]:
    """Model names: ``"all"`` but the quantized ones, or ``"classification"``."""
    if kind == "classification":
        return torchvision.models.list_models(module=_MODULES)
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


OF_TIMM = "timm/"
_TIMM = """
    beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convformer_s18
    convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano crossvit_tiny_240 cs3darknet_s csatv2
    cspnext_tiny davit_tiny deit3_small_patch16_224 deit_tiny_patch16_224 densenet121 dla34 dpn68 ecaresnet26t
    edgenext_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_s fastvit_s12 flexivit_small focalnet_tiny_lrf
    gcvit_tiny gernet_s ghostnet_050 ghostnetv3_050 gmlp_s16_224 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0
    hiera_tiny_224 hieradet_small hrnet_w18_ssld iformer_s inception_next_atto inception_resnet_v2 inception_v3
    inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 mixer_s16_224 mobilenet_edgetpu_v2_xs mobilenetv2_100 mobilenetv3_small_050
    mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_siglip
    nasnetalarge nest_tiny nextvit_small nf_seresnet26 nfnet_f0 pit_xs_224 pnasnet5large pvt_v2_b0 rdnet_tiny
    regnetx_004_tv regnety_040_sgn repghostnet_050 repvit_m0_9 res2net50_26w_4s resnest26d resnet18 resnet18d
    resnetv2_18 resnext50_32x4d rexnet_100 rexnetr_100 samvit_base_patch16_224 selecsls42 sequencer2d_s seresnet50
    shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_a tnt_s_patch16_224 tresnet_l twins_svt_base vgg11 visformer_tiny
    vit_relpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a
    wide_resnet50_2 xception41 xcit_nano_12_p16_224
"""
TIMM = [f"{OF_TIMM}{name}" for name in _TIMM.split()]
"""Of each of timm's modules the smallest model by its name (nano, tiny, 18, ...), and of many a second kind. Left out:
deepseek_vit, gemma4_vit, mobilenetv5 (150 million parameters or more) and qwen3_vit (minutes in float64)."""


def build(name: str) -> nn.Module:
    """Build an untrained model in eval mode whose every parameter and statistic has its own value."""
    if name.startswith(OF_TIMM):
        import timm

        return randomise(timm.create_model(name.removeprefix(OF_TIMM), pretrained=False)).eval()
    if name in OTHERS:
        return randomise(OTHERS[name].make()).eval()
    options: dict[str, Any] = {"weights": None}
    if name in _of(_MODULES.detection) + _of(_MODULES.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return randomise(torchvision.models.get_model(name, **options)).eval()


@contextmanager
def without_values() -> Iterator[None]:
    """Build models quickly, with whatever their memory holds for weights."""
    before = {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"}
    own = globals()["randomise"]
    try:
        for name in before:
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        globals()["randomise"] = lambda model: model
        yield
    finally:
        globals()["randomise"] = own
        for name, function in before.items():
            setattr(nn.init, name, function)


HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "roi_heads.keypoint_predictor")


def is_detector(name: str) -> bool:
    """Whether a model's outputs are boxes that it chooses, on random weights perhaps none."""
    return name in _of(_MODULES.detection)


class Heads(nn.Module):
    """A detector that returns what its heads put out, before boxes are chosen."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[Any]:
        seen: list[Any] = []
        heads = [module for name, module in self.detector.named_modules() if name in HEADS]
        hooks = [head.register_forward_hook(lambda *call: seen.append(call[2])) for head in heads]
        try:
            self.detector(images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def inputs(name: str) -> Any:
    """Make example inputs at 224 x 224, or the model's own size."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    if name.startswith(OF_TIMM):
        import timm

        return random(1, *timm.get_pretrained_cfg(name.removeprefix(OF_TIMM)).input_size)
    if name in OTHERS:
        images = random(*OTHERS[name].shape)
        return {keyword: images} if (keyword := OTHERS[name].keyword) else images
    if name in _of(_MODULES.video):
        size = 224 if name.startswith(("mvit", "swin", "s3d")) else 112
        return random(1, 3, 16, size, size)
    if name in _of(_MODULES.detection):
        return ([random(3, 320, 320)],)
    if name in _of(_MODULES.optical_flow):
        return random(1, 3, 128, 128), random(1, 3, 128, 128)
    size = 299 if name == "inception_v3" else 224
    return random(1, 3, size, size)


def _of(module: Any) -> list[str]:
    return torchvision.models.list_models(module=module)


OF_NORMS = ("running_mean", "running_var", "weight", "bias")
"""Buffers of norms, frozen ones too; others are the model's own constants, such as its colours' means."""


def randomise(model: nn.Module) -> nn.Module:
    """Values that differ everywhere and keep activations at a size where float64 tells rounding from errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[2] in OF_NORMS]
        for name, tensor in [*model.named_parameters(), *buffers]:
            if not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(values + 0.5)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.copy_(values * 0.6 + 0.7)
            elif tensor.dim() <= 1:
                tensor.copy_((values - 0.5) * 0.2)
            else:
                tensor.copy_((values - 0.5) * (12 / tensor[0].numel()) ** 0.5)
    return model
