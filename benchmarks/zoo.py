"""The torchvision models that the structure benchmarks run on, with weights and inputs that tell errors apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

_MODULES = torchvision.models


def names(kind: str = "all") -> list[str]:
    """Model names: ``"all"`` but the quantized ones, or ``"classification"``."""
    if kind == "classification":
        return torchvision.models.list_models(module=_MODULES)
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


def build(name: str) -> nn.Module:
    """An untrained model in eval mode whose every parameter and statistic has its own value."""
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
    """Example inputs at 224 x 224, or the model's own size."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

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


def randomise(model: nn.Module) -> nn.Module:
    """Values that differ everywhere and keep activations at a size where float64 tells rounding from errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
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
