"""Models whose code keeps things from one call to the next: a trace neither sees what another left nor leaves any."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import infoprune
from infoprune.structure import check_plan
from infoprune.structure.tensors import attributes_restored
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Remembering(nn.Module):
    """Computes a bias once for each device and keeps it until it is trained again (LeViT, EfficientFormer in timm)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.offsets = nn.Parameter(torch.randn(1, 1, 9))
        self.register_buffer("places", torch.arange(64).reshape(8, 8) % 9)
        self.known: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Remembering:
        self.known = {} if mode else self.known
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        device = str(self.offsets.device)
        if device not in self.known:
            self.known[device] = self.offsets[:, :, self.places]
        return self.head(self.middle(self.stem(x)).relu() + self.known[device])


def test_what_a_forward_keeps_does_not_freeze_the_rest() -> None:
    net = randomise(Remembering()).eval().requires_grad_(False)
    expected = net(X)  # fills the cache
    kept = dict(net.known)
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["stem", "middle"]
    assert net.known.keys() == kept.keys()
    assert all(net.known[key] is kept[key] for key in kept)
    assert torch.equal(net(X), expected)

    original, plan = copy.deepcopy(net), structure.plan({"stem": [0, 3], "middle": [1, 2, 7]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


class Hoarding(nn.Module):
    """Keeps whatever passes by, in every way that Python offers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.seen: list[Any] = [{"first": []}]
        self.shapes: set[Any] = set()
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen[0]["first"].append(y)
        self.seen.append(y)
        self.shapes.add(tuple(y.shape))
        self.last = y
        self.register_buffer("late", y.mean((0, 2, 3)))
        return y.relu()


def test_nothing_is_left_behind() -> None:
    net = Hoarding()
    outer, inner = net.seen, net.seen[0]["first"]
    assert infoprune.trace(nn.Sequential(net, nn.Conv2d(4, 2, 1)), X).prunable
    assert net.seen is outer
    assert outer == [{"first": []}]
    assert outer[0]["first"] is inner
    assert net.shapes == set()
    assert net.last is None
    assert "late" not in dict(net.named_buffers())


def test_containers_get_their_contents_back_in_their_order() -> None:
    net = nn.Module()
    net.sizes, net.known = [3, 1, 2], {"b": 1, "a": 2}
    with attributes_restored([net]):
        net.sizes.sort()
        del net.known["b"]
        net.known["b"] = 5
    assert net.sizes == [3, 1, 2]
    assert list(net.known.items()) == [("b", 1), ("a", 2)]
