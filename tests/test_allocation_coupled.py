"""Which groups count as residual streams, and what becomes of them without data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, densenet121, efficientnet_b0, mobilenet_v2, resnet18, vit_b_16
from torchvision.ops import FrozenBatchNorm2d

import infoprune
from infoprune.allocation import Budget, get_allocation
from infoprune.allocation.coupled import coupled_groups
from infoprune.models import CifarResNet

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A stem and a convolution of as many channels, whose outputs meet in some way."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.meet = meet
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
        self.head = nn.Conv2d(16, 4, 1)
        self.offset = nn.Parameter(torch.randn(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.meet(x, self.inner(x)))


@pytest.mark.parametrize(
    ("meet", "groups", "coupled"),
    [
        (lambda x, y: x + y, 1, {"stem"}),
        (lambda x, y: y.add_(x), 1, {"stem"}),
        (lambda x, y: x - y, 1, {"stem"}),
        (lambda x, y: torch.add(x, y, alpha=2), 1, {"stem"}),
        (lambda x, y: torch.lerp(x, y, 0.5), 1, {"stem"}),
        (lambda x, y: torch.stack([x, y]).sum(0), 1, {"stem"}),
        (lambda x, y: torch.stack([x, y], dim=-1).mean(-1), 1, {"stem"}),
        (lambda x, y: torch.cat([x[None], y[None]]).sum(0), 1, {"stem"}),
        (lambda x, y: (torch.stack([x, y], 1) * torch.stack([x, y], 1).sigmoid()).sum(1), 1, {"stem"}),
        (lambda x, y: torch.cat([x, y], 1).view(len(x), 2, *x.shape[1:]).sum(1), 1, {"stem"}),
        (lambda x, y: torch.cat([x, y]).unflatten(0, (2, -1)).transpose(0, 1).mean(1), 1, {"stem"}),
        (lambda x, y: torch.cat([x, y], 1).sum(1, keepdim=True).expand_as(x), 1, set()),
        (lambda x, y: torch.stack([x, y]).amax(0), 1, set()),
        (lambda x, y: torch.stack([y, y]).sum((0, 3), keepdim=True)[0], 16, set()),  # one activation, twice
        (lambda x, y: y.sum((2, 3), keepdim=True), 16, set()),
        (lambda x, y: y + torch.ones(y.shape[1]).view(1, -1, 1, 1), 16, set()),  # a constant
        (lambda x, y: y + y.mean(1, keepdim=True).expand(-1, y.shape[1], -1, -1), 16, set()),
        (lambda x, y: x * y.sigmoid(), 1, set()),  # a gate
        (lambda x, y: (x * y) + 1.0, 1, set()),
        (lambda x, y: y, 16, set()),  # depthwise
        (lambda x, y: y + y.mean((1, 2, 3), keepdim=True), 16, set()),
        (lambda x, y: y, 4, set()),
        (lambda x, y: x + y, 16, {"stem"}),
        (lambda x, y: torch.cat([x, y], dim=1)[:, :16], 1, set()),
    ],
)
def test_groups_are_coupled_where_what_several_layers_make_is_added(
    meet: Callable[[Tensor, Tensor], Tensor], groups: int, coupled: set[str]
) -> None:
    assert coupled_groups(infoprune.trace(Block(meet, groups).eval(), X)) == coupled


def frozen_mobilenet() -> nn.Module:
    """A MobileNetV2 as in detectors, whose norms add buffers."""
    return mobilenet_v2(norm_layer=FrozenBatchNorm2d)


@pytest.mark.parametrize(
    ("build", "coupled"),
    [
        (resnet18, {"conv1", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"}),
        (mobilenet_v2, {f"features.{number}.conv.2" for number in (2, 4, 7, 11, 14)}),
        (frozen_mobilenet, {f"features.{number}.conv.2" for number in (2, 4, 7, 11, 14)}),
        (efficientnet_b0, {f"features.{number}.0.block.3.0" for number in (2, 3, 4, 5, 6)}),
        (convnext_tiny, {"features.0.0", "features.2.1", "features.4.1", "features.6.1"}),
        (vit_b_16, {"conv_proj"}),
        (densenet121, set()),
    ],
)
def test_the_coupled_groups_of_public_networks_are_their_residual_streams(
    build: Callable[[], nn.Module], coupled: set[str]
) -> None:
    assert coupled_groups(infoprune.trace(build(), torch.zeros(1, 3, 224, 224))) == coupled


def test_a_bias_that_is_added_makes_no_stream() -> None:
    class Offset(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(self.stem(x).relu()) * self.offset + self.offset)

    assert coupled_groups(infoprune.trace(Offset(torch.add, groups=16).eval(), X)) == set()


def test_padded_shortcuts_divide_streams_into_parts() -> None:
    parts = {"conv1", "layer2.0.conv2", "layer2.0.conv2#2", "layer3.0.conv2", "layer3.0.conv2#2"}
    assert coupled_groups(infoprune.trace(CifarResNet(depth=14).eval(), X)) == parts


def test_without_data_streams_stay_whole_in_inverted_residuals() -> None:
    structure = infoprune.trace(mobilenet_v2(), torch.zeros(1, 3, 64, 64))
    widths = get_allocation("coupled_last").widths(structure, None, Budget("macs", 0.5))
    streams = coupled_groups(structure)
    assert all(widths[name] == structure.group(name).size for name in streams)
    assert all(width < structure.group(name).size for name, width in widths.items() if name not in streams)
