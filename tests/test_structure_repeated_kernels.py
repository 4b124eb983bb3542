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


class Blur(nn.Module):
    """Blur along one dimension, then along the other, by constant kernels that every channel has; then sum or read."""

    def __init__(self, sums: bool, bias: bool) -> None:
        super().__init__()
        self.sums = sums
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), None if sums else nn.Conv2d(8, 4, 1)
        self.shift = nn.Parameter(torch.randn(8)) if bias else None
        self.register_buffer("taps", torch.tensor([1.0, 2.0, 1.0]) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, columns = (self.taps.view(shape).repeat(x.shape[1], 1, 1, 1) for shape in ((1, 1, 1, 3), (1, 1, 3, 1)))
        x = F.conv2d(x, rows, padding=(0, 1), groups=x.shape[1])
        x = F.conv2d(x, columns, self.shift, padding=(1, 0), groups=x.shape[1])
        return x.abs().sum(1) if self.head is None else self.head(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sums", [False, True])
def test_channels_of_zeros_stay_zero_behind_constant_kernels_of_their_own(sums: bool, bias: bool) -> None:
    net = randomise(Blur(sums, bias)).double()
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    assert not structure.group("stem").frozen
    plan = structure.plan({"stem": [0, 3, 4]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


def test_what_a_group_of_constant_kernels_mixes_stays() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.register_buffer("kernels", torch.randn(8, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.stem(x), self.kernels, groups=2).abs().sum(1)

    net = randomise(Mixed()).double()
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    for group in structure.prunable:
        plan = structure.plan({group.name: [0]})
        cut = copy.deepcopy(original)
        infoprune.shrink(cut, plan)
        assert relative_error(original, cut, plan, X) < 1e-12
