"""The list syntax of the papers' lineage, and its published costs to the digit.

Their count of a pruned net is ours (multiply-accumulates of convolutions and linear layers) plus the biases of the
convolutions and two operations per output of a batch norm; that of the unpruned net leaves the batch norms out.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Budget, PerStage, select
from infoprune.allocation.per_stage import parse_ratios
from infoprune.criteria import get_criterion
from infoprune.errors import ConfigurationError
from infoprune.models.cifar_resnet import CifarResNet
from infoprune.models.cifar_vgg import CifarVGG16


def cut(net: nn.Module, size: int, ratios: str) -> tuple[infoprune.Structure, infoprune.Cost]:
    structure = infoprune.trace(net, torch.zeros(1, 3, size, size))
    widths = PerStage(ratios=ratios).widths(structure)
    scores = get_criterion("random")(net, structure)
    infoprune.shrink(net, select(structure, scores, widths))
    return structure, structure.cost(widths)


def extras(net: nn.Module, size: int) -> tuple[int, int]:
    """Biases that convolutions add, and outputs of batch norms, for one image."""
    counts = {"bias": 0, "norm": 0}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            counts["bias"] += output.numel()
        if isinstance(module, nn.BatchNorm2d):
            counts["norm"] += output.numel()

    for module in net.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return counts["bias"], counts["norm"]


@pytest.mark.parametrize(
    ("ratios", "params", "flops", "params_cut", "flops_cut"),
    [
        ("[0.]+[0.5]*3+[0.6]*16", "8.018", "0.9549", "68.63", "76.65"),
        pytest.param("[0.]+[0.5]*3+[0.61]*16", "7.846", "0.9232", "69.30", "77.42", marks=pytest.mark.slow),
    ],
)
def test_resnet50(ratios: str, params: str, flops: str, params_cut: str, flops_cut: str):
    net = torchvision.models.resnet50()
    structure, after = cut(net, 224, ratios)
    before = structure.cost()
    assert f"{before.macs / 1e9:.3f}" == "4.089"
    assert sum(p.numel() for p in net.parameters()) == after.params
    _, norms = extras(net, 224)
    theirs = after.macs + 2 * norms
    assert f"{after.params / 1e6:.3f}" == params
    assert f"{theirs / 1e9:.4f}" == flops
    assert f"{100 * (1 - after.params / before.params):.2f}" == params_cut
    assert f"{100 * (1 - theirs / before.macs):.2f}" == flops_cut


@pytest.mark.parametrize(
    ("ratios", "params", "flops"),
    [
        ("[0.21]*7+[0.75]*5", "2.767", "131.17"),
        ("[0.3]*7+[0.75]*5", "2.506", "104.78"),
        ("[0.45]*7+[0.78]*5", "1.902", "66.95"),
    ],
)
def test_vgg16_where_the_list_leaves_the_last_convolution_out(ratios: str, params: str, flops: str):
    biases, _ = extras(CifarVGG16(), 32)
    net = CifarVGG16()
    structure, after = cut(net, 32, ratios)
    assert f"{(structure.cost().macs + biases) / 1e6:.2f}" == "313.74"
    biases, norms = extras(net, 32)
    assert f"{after.params / 1e6:.3f}" == params
    assert f"{(after.macs + biases + 2 * norms) / 1e6:.2f}" == flops
    assert net.features.conv16.out_channels == 512


def residual_cost(stem: int, outputs: list[int], inside: list[list[int]]) -> tuple[int, int]:
    """Parameters and their FLOPs of a CIFAR ResNet whose stages, as in their code, need not match the stem."""
    areas = [32 * 32, 16 * 16, 8 * 8]
    params, flops = 27 * stem + 2 * stem, (27 * stem + 2 * stem) * areas[0]
    width = stem
    for output, blocks, area in zip(outputs, inside, areas, strict=True):
        for middle in blocks:
            for into, out in ((width, middle), (middle, output)):
                params += 9 * into * out + 2 * out
                flops += (9 * into * out + 2 * out) * area
            width = output
    return params + 10 * width + 10, flops + 10 * width


def test_resnet110_with_the_unaligned_widths_of_the_lineage():
    ratios = parse_ratios("[0.]+[0.4]*2+[0.5]*18+[0.65]*36")
    stem, outputs = int(16 * (1 - ratios[0])), [int(16 * 0.6), int(32 * 0.6), 64]
    inside = [
        [int(c * (1 - r)) for r in ratios[3 + 18 * stage : 21 + 18 * stage]] for stage, c in enumerate((16, 32, 64))
    ]
    params, flops = residual_cost(stem, outputs, inside)
    assert (f"{params / 1e6:.3f}", f"{flops / 1e6:.2f}") == ("0.544", "71.69")


def test_a_cifar_resnet_takes_one_ratio_for_each_stage_but_the_last_and_each_block():
    net = CifarResNet(depth=20)
    structure = infoprune.trace(net, torch.zeros(1, 3, 32, 32))
    widths = PerStage(ratios="[0.]+[0.25]*2+[0.5]*9").widths(structure)
    stages = ("conv1", "layer2.0.conv2", "layer2.0.conv2#2", "layer3.0.conv2", "layer3.0.conv2#2")
    assert [widths[name] for name in stages] == [12, 6, 6, 16, 16]
    assert (widths["layer1.0.conv1"], widths["layer3.2.conv1"]) == (8, 32)


def test_ratios_of_the_lineage_can_be_put_under_a_budget():
    structure = infoprune.trace(CifarVGG16(), torch.zeros(1, 3, 32, 32))
    widths = PerStage(ratios="[0.3]*7+[0.75]*5").widths(structure, budget=Budget("macs", 0.5))
    assert structure.cost(widths).macs / structure.cost().macs == pytest.approx(0.5, rel=0.01)
    assert widths["features.conv16"] == 512
    first, later = widths["features.conv4"] / 128, widths["features.conv12"] / 512
    assert (1 - later) / (1 - first) == pytest.approx(0.75 / 0.3, rel=0.05)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ("[0.5]*3", "has 3 ratios, but this net takes 12: stem .part of stage 1., conv1, layer2.0.conv2"),
        ("[0.5]+[0.25]*2+[0.5]*9", "the stem is added to the first stage .* its own is 0, not 0.5"),
        ("[0.]+[1.0]*2+[0.5]*9", r"entry 1: a ratio is the share .* in \[0, 1\); got 1.0"),
        ("[0.]+0.5*2", "cannot read"),
        ("__import__('os')", "cannot read"),
        ("[0.", "cannot read"),
        ([], "needs ratios"),
    ],
)
def test_lists_that_do_not_fit_say_what_the_net_takes(ratios: str | list[float], message: str):
    structure = infoprune.trace(CifarResNet(depth=20), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigurationError, match=message):
        PerStage(ratios=ratios).widths(structure)


def test_a_ratio_for_a_frozen_group_names_it():
    structure = infoprune.trace(CifarVGG16(), torch.zeros(1, 3, 32, 32), frozen=["features.conv3"])
    with pytest.raises(ConfigurationError, match=r"ratio 0.3 for features.conv3, which is frozen .* set it to 0"):
        PerStage(ratios="[0.3]*12").widths(structure)
