"""A forward that replaces the data of tensors, ``x.data = y``, for which PyTorch runs no operator."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import TraceError
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def doubled(a: Tensor, b: Tensor) -> Tensor:
    a.data = a.data * 2
    return a


def flipped(a: Tensor, b: Tensor) -> Tensor:
    a.data = a.data.flip(1)
    return a


def exchanged(a: Tensor, b: Tensor) -> Tensor:
    a.data = b.data
    return a


def read_before(a: Tensor, b: Tensor) -> Tensor:
    before = a.flip(1)
    a.data = b.data
    return a + before


def written_to(a: Tensor, b: Tensor) -> Tensor:
    a.data.mul_(b.data).add_(1)
    return a


class Net(nn.Module):
    """Two branches, one of which takes the place of the other or is mixed into it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.left(x).relu(), self.right(x).relu()))


@pytest.mark.parametrize("function", [doubled, flipped, exchanged, read_before, written_to])
def test_labels_follow_the_data(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = randomise(Net(function)).double()
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, {"name": "random", "seed": 3}, filters=0.5, round_to=1, verify=False).plan
    assert net.head.in_channels == 4
    assert relative_error(original, net, plan, X) < 1e-12


class Constrained(nn.Module):
    """A layer whose weight each forward replaces."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        self.stem.weight.data = self.function(self.stem.weight.data)
        return self.head(self.stem(x).relu())


@pytest.mark.parametrize(
    ("function", "free"),
    [
        (lambda weight: weight.clamp(-0.1, 0.1), True),
        (lambda weight: weight / weight.norm(), True),
        (lambda weight: weight.flip(0), False),
        (torch.sigmoid, False),
    ],
)
def test_weights_that_are_replaced_go_only_where_each_stays_in_its_place(
    function: Callable[[Tensor], Tensor], free: bool
) -> None:
    net = randomise(Constrained(function)).double()
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    assert structure.passes.on_shapes
    if not free:
        assert "replaces the data of a parameter or buffer" in str(structure.group("stem").reason)
        return
    plan = structure.plan({"stem": [0, 3, 5]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


def test_a_layer_that_is_moved_to_its_own_device_stays_free() -> None:
    class Moved(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.left.to(x.device)
            return super().forward(x)

    assert "left" in {group.name for group in infoprune.trace(Moved(doubled).double(), X).prunable}


def test_data_of_another_type_and_other_channels_is_refused() -> None:
    def rounded(a: Tensor, b: Tensor) -> Tensor:
        a.data = b.data.float()
        return a

    with pytest.raises(TraceError, match=r"assigns to the \.data of a tensor of torch\.float64 one of torch\.float32"):
        infoprune.trace(Net(rounded).double(), X)
