"""Fixed kernels in one buffer, repeated for each channel of several layers: wavelets, gradients, blurs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Wavelets(nn.Module):
    """Two layers, each followed by the same four kernels for every channel."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.repeated = repeated
        self.register_buffer("kernels", torch.randn(4, 1, 2, 2))
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(32, 6, 1), nn.Conv2d(24, 5, 1)

    def transformed(self, x: Tensor) -> Tensor:
        channels, kernels = x.shape[1], self.kernels
        if self.repeated:
            kernels = kernels.repeat(channels, 1, 1, 1)
        else:
            kernels = kernels[None].expand(channels, -1, -1, -1, -1).reshape(-1, 1, 2, 2)
        return F.conv2d(x, kernels, stride=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transformed(self.first(x).relu())
        return self.head(self.transformed(self.second(x).relu()))


@pytest.mark.parametrize("repeated", [True, False])
def test_each_layer_loses_channels_of_its_own(repeated: bool) -> None:
    net = randomise(Wavelets(repeated)).double()
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    assert [(group.name, group.size) for group in structure.prunable] == [("first", 8), ("second", 6)]
    assert "a buffer that is repeated" in str(structure.group("kernels").reason)
    plan = structure.plan({"first": [0, 3, 4], "second": [5]})
    infoprune.shrink(net, plan)
    assert (net.kernels.shape, net.second.in_channels, net.head.in_channels) == ((4, 1, 2, 2), 20, 20)
    assert relative_error(original, net, plan, X) < 1e-12


def test_kernels_that_are_repeated_a_written_out_number_of_times_keep_their_channels() -> None:
    class Fixed(Wavelets):
        def transformed(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernels.repeat(8, 1, 1, 1)[: 4 * x.shape[1]], stride=2, groups=x.shape[1])

    structure = infoprune.trace(randomise(Fixed(repeated=True)).double(), X)
    assert structure.group("first").frozen


class BackAndForth(nn.Module):
    """A wavelet transform and its inverse, with four kernels for each channel in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 8
        self.register_buffer("kernels", torch.randn(4, 1, 2, 2).repeat(8, 1, 1, 1))
        self.first, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = F.conv2d(self.first(x), self.kernels, stride=2, groups=self.channels)
        return self.head(F.conv_transpose2d(parts.relu(), self.kernels, stride=2, groups=self.channels))


def test_kernels_of_a_transposed_convolution_go_with_its_channels() -> None:
    net = randomise(BackAndForth()).double()
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", filters=0.5, round_to=1).plan
    assert (net.channels, net.kernels.shape[0]) == (4, 16)
    assert relative_error(original, net, plan, X) < 1e-12
