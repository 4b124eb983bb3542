"""Models whose code keeps things from one call to the next: a trace neither sees what another left nor leaves any."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import PlanError
from infoprune.structure import check_plan
from infoprune.structure.module_state import attributes_restored
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


class Anchored(nn.Module):
    """Computes the places of its boxes anew where the size of its maps changes, as heads of YOLO models do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.size: torch.Size | None = None
        self.anchors = torch.empty(0)
        self.sizes_seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.stem(x).relu())
        if self.size != x.shape[2:]:
            self.size = x.shape[2:]
            self.sizes_seen.append(self.size[0])
            self.anchors = 0.5 + 8.0 * torch.arange(self.size[1])
        return x[:, :2] * 2.0 + self.anchors


@pytest.mark.parametrize("size", [8, 12])
def test_a_model_that_ran_after_its_trace_is_cut_as_it_was_traced(size: int) -> None:
    net = Anchored().eval()
    structure = infoprune.trace(net, X)
    plan = structure.plan({"stem": [0, 1, 5]})
    net(torch.zeros(1, 3, size, size))
    anchors, seen = net.anchors, net.sizes_seen
    check_plan(net, X, structure, plan)
    assert net.anchors is anchors
    assert net.sizes_seen is seen
    assert seen == [size]


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
        self.also = nn.Conv2d(4, 4, 1, device=x.device)
        self.offset = nn.Parameter(torch.zeros(4, 1, 1, device=x.device))
        return y.relu()


def test_nothing_is_left_behind() -> None:
    net = Hoarding()
    outer, inner = net.seen, net.seen[0]["first"]
    structure = infoprune.trace(nn.Sequential(net, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)), X)
    assert [group.name for group in structure.prunable] == ["1"]  # what is kept of the others is an output
    assert net.seen is outer
    assert outer == [{"first": []}]
    assert outer[0]["first"] is inner
    assert net.shapes == set()
    assert net.last is None
    assert "late" not in dict(net.named_buffers())
    assert dict(net.named_children()) == {"conv": net.conv}
    assert [name for name, _ in net.named_parameters()] == ["conv.weight", "conv.bias"]


class Watching(nn.Module):
    """Hangs hooks on its layers at the first call, and notes that it did (transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)])
        self.seen: list[Tensor] = []
        self.watches = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen = []
        if not self.watches:
            for layer in self.layers:
                layer.register_forward_hook(lambda layer, inputs, output: self.seen.append(output))
            self.watches = True
        for layer in self.layers:
            x = layer(x)
        seen, self.seen = self.seen, []
        return sum(head(maps) for head, maps in zip(self.heads, seen, strict=True))


def test_hooks_of_the_first_call_do_not_stay_behind() -> None:
    net = randomise(Watching()).eval()
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["layers.0", "layers.1"]
    assert not any(layer._forward_hooks for layer in net.layers)
    original, plan = copy.deepcopy(net), structure.plan({"layers.0": [0, 5], "layers.1": [2]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12
    assert net(X).shape == original(X).shape


def test_containers_get_their_contents_back_in_their_order() -> None:
    net = nn.Module()
    net.sizes, net.known = [3, 1, 2], {"b": 1, "a": 2}
    with attributes_restored([net]):
        net.sizes.sort()
        del net.known["b"]
        net.known["b"] = 5
    assert net.sizes == [3, 1, 2]
    assert list(net.known.items()) == [("b", 1), ("a", 2)]


class Scaled(nn.Module):
    """Computes a factor for every channel once: for each device, or at all."""

    def __init__(self, by_device: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.factor = nn.Parameter(torch.randn(8, 1, 1))
        self.by_device = by_device
        self.known: dict[str, Tensor] = {}
        self.once: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.by_device:
            device = str(x.device)
            if device not in self.known:
                self.known[device] = self.factor.exp()
            return self.head(self.stem(x) * self.known[device])
        if self.once is None:
            self.once = self.factor.exp()
        return self.head(self.stem(x) * self.once)


@pytest.mark.parametrize("by_device", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_what_was_computed_with_the_old_widths_is_dropped(by_device: bool, inside: bool, tmp_path: Path) -> None:
    """Else the code would go on with eight factors for five channels."""
    scaled = randomise(Scaled(by_device)).eval().requires_grad_(False)
    net = nn.Sequential(scaled) if inside else scaled
    structure = infoprune.trace(net, X)
    plan = structure.plan({structure.prunable[0].name: [1, 4, 6]})
    path = ("0." if inside else "") + ("known" if by_device else "once")
    assert plan.caches == (path,)
    assert infoprune.PruningPlan.from_json(plan.to_json()) == plan
    original = copy.deepcopy(net)
    net(X)
    assert scaled.known if by_device else scaled.once is not None
    used = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    assert not scaled.known
    assert scaled.once is None
    assert relative_error(original, net, plan, X) < 1e-12
    assert infoprune.verify(used, net, plan, X).max_error < 1e-12

    assert infoprune.plan_of(net).caches == (path,)
    infoprune.save(net, tmp_path / "net.pt")
    infoprune.load(tmp_path / "net.pt", used)
    assert torch.equal(used(X), net(X))


def test_a_filled_cache_without_a_key_for_the_device_keeps_its_channels() -> None:
    net = randomise(Scaled(by_device=False)).eval().requires_grad_(False)
    net(X)
    (group,) = (group for group in infoprune.trace(net, X).groups if group.name == "stem")
    assert "meets an input, a constant" in str(group.reason)


def test_a_plan_whose_caches_are_no_names_is_refused() -> None:
    with pytest.raises(PlanError, match="malformed: TypeError: expected a name, got 3"):
        infoprune.PruningPlan.from_dict({"format": 1, "tensors": {}, "caches": [3]})


class Unchangeable(dict[str, int]):
    def clear(self) -> None:
        raise TypeError("this dict does not change")


def test_containers_that_nobody_wrote_to_are_not_touched() -> None:
    net = nn.Module()
    net.settings = Unchangeable(width=3)
    with attributes_restored([net]):
        pass
    assert net.settings == {"width": 3}
