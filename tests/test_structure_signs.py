"""A maximum over channels, which does not miss what is removed where no channel is below zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Features, multiplied by a map that is computed from all of their channels."""

    def __init__(self, activation: Callable[[Tensor], Tensor], over_channels: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.activation, self.over_channels = activation, over_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        return self.head(x) * self.over_channels(x.clone())


def attended(x: Tensor) -> Tensor:
    """Return the map of CBAM: the maximum of what was multiplied by a gate for each channel."""
    return (x * x.mean((2, 3), keepdim=True).sigmoid()).max(1, keepdim=True)[0]


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x.amax(1, keepdim=True),
    "of a share": lambda x: (x * 0.5).amax(1, keepdim=True),
    "CBAM": attended,
    "pooled": lambda x: F.max_pool2d(x, 3, 1, 1).max(1, keepdim=True)[0],
    "over all": lambda x: x.amax((1, 2, 3), keepdim=True),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "amin": lambda x: x.amin(1, keepdim=True),
    "lowered": lambda x: (x - 0.3).amax(1, keepdim=True),
    "lowered in place": lambda x: x.sub_(0.3).amax(1, keepdim=True),
    "clamped below zero": lambda x: x.clamp(min=0.0, max=-0.1).amax(1, keepdim=True),
    "turned": lambda x: (x * -0.5).amax(1, keepdim=True),
    "difference": lambda x: torch.add(x, x.flip(3), alpha=-1).amax(1, keepdim=True),
    "not zero": lambda x: x.sigmoid().amax(1, keepdim=True),
    "places": lambda x: x.max(1, keepdim=True)[1],
}


def lowered_through_a_view(x: Tensor) -> Tensor:
    same = x.view(x.shape)
    x.view(-1).sub_(0.3)
    return same.amax(1, keepdim=True)


KEPT["lowered through a view"] = lowered_through_a_view


@pytest.mark.parametrize(
    "activation", [torch.relu, F.relu6, lambda x: x.clamp(min=0.0)], ids=["relu", "relu6", "clamp"]
)
@pytest.mark.parametrize("name", FREE)
def test_channels_that_are_not_below_zero_go(name: str, activation: Callable[[Tensor], Tensor]) -> None:
    net = randomise(Net(activation, FREE[name])).double()
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, {"name": "random", "seed": 1}, filters=0.5, round_to=1, verify=False).plan
    assert net.stem.out_channels == 4
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("name", KEPT)
def test_channels_that_may_be_below_zero_stay(name: str) -> None:
    structure = infoprune.trace(randomise(Net(torch.relu, KEPT[name])).double(), X)
    assert "over channels would change" in str(structure.group("stem").reason)


@pytest.mark.parametrize("activation", [F.silu, F.hardtanh, lambda x: x])
def test_without_such_an_activation_all_stay(activation: Callable[[Tensor], Tensor]) -> None:
    structure = infoprune.trace(randomise(Net(activation, FREE["amax"])).double(), X)
    assert "amax over channels would change" in str(structure.group("stem").reason)
