"""Code that reads a width from one tensor for another: the two are cut alike."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, tensor

import infoprune
from infoprune.structure import check_plan
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Reduced(nn.Module):
    """Tokens made fewer by a convolution; its result is taken to be as wide as what goes in (SegFormer, PVT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, channels = tokens.shape
        image = tokens.transpose(1, 2).reshape(batch, channels, 8, 8)
        return self.norm(self.reduce(image).reshape(batch, channels, -1).transpose(1, 2))


class Parted(nn.Module):
    """One layer for three things, two of them as wide as what goes in (FocalNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.Conv2d(width, 2 * width + 3, 1)
        self.context = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        query, context, gates = torch.split(self.parts(x), (channels, channels, 3), dim=1)
        return query * (self.context(context) * gates[:, :1] + gates[:, 1:2] - gates[:, 2:])


class Turned(nn.Module):
    """Channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Net(nn.Module):
    """Both, each after a layer of its own, and a layer whose width nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.turned = nn.Conv2d(3, 12, 1), Turned()
        self.reduced, self.free = Reduced(12), nn.Linear(12, 10)
        self.body, self.parted, self.head = nn.Conv2d(10, 12, 1), Parted(12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.free(self.reduced(self.turned(self.stem(x))))
        image = tokens.transpose(1, 2).unflatten(2, (4, 4))
        return self.head(self.parted(self.body(image).relu()))


def test_what_is_read_elsewhere_is_cut_alike() -> None:
    net = randomise(Net()).eval()
    structure = infoprune.trace(net, X)
    together = {
        group.name: {slot.tensor.removesuffix(".weight") for slot in group.slots if slot.tensor.endswith("weight")}
        for group in structure.prunable
    }
    assert together == {
        "stem": {"stem", "reduced.reduce", "reduced.norm", "free"},
        "free": {"free", "body"},
        "body": {"body", "parted.parts", "parted.context", "head"},
    }
    original, plan = copy.deepcopy(net), structure.plan({"stem": [0, 3, 7], "free": [1], "body": [2, 5, 11, 4]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert net.parted.parts.out_channels == 8 + 8 + 3
    assert relative_error(original, net, plan, X) < 1e-12


class Apart(nn.Module):
    """Takes channels and pixels of one map apart by the width of another."""

    def __init__(self, apart: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.read, self.merged = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.left, self.right, self.apart = nn.Linear(8, 2), nn.Linear(8, 2), apart

    def forward(self, x: Tensor) -> Tensor:
        read, merged = self.read(x), self.merged(x).flatten(1)
        return self.left(self.apart(merged, read.shape[1]).mean(2)) + self.right(read.mean((2, 3)))


@pytest.mark.parametrize(
    "apart",
    [lambda a, width: a.view(-1, width, 64), lambda a, width: a.unflatten(1, (width, 64))],
    ids=["view", "unflatten"],
)
def test_a_dimension_is_taken_apart_by_a_width_read_elsewhere(apart: Callable[[Tensor, int], Tensor]) -> None:
    structure = infoprune.trace(randomise(Apart(apart)), torch.randn(2, 3, 8, 8))
    (group,) = structure.prunable
    assert {slot.tensor for slot in group.slots} >= {"read.weight", "merged.weight"}


class GivenBoth(nn.Module):
    """Takes a map apart by the width of another; it has no weights."""

    def forward(self, merged: Tensor, read: Tensor) -> Tensor:
        return merged.reshape(-1, read.shape[1], 64)


def test_a_module_without_weights_reads_a_width_of_those_around_it() -> None:
    class Around(Apart):
        def __init__(self) -> None:
            super().__init__(lambda merged, width: merged)
            self.both = GivenBoth()

        def forward(self, x: Tensor) -> Tensor:
            read, merged = self.read(x), self.merged(x).flatten(1)
            return self.left(self.both(merged, read).mean(2)) + self.right(read.mean((2, 3)))

    (group,) = infoprune.trace(randomise(Around()), torch.randn(2, 3, 8, 8)).prunable
    assert {slot.tensor for slot in group.slots} >= {"read.weight", "merged.weight"}


def test_a_width_that_nothing_has_stays() -> None:
    class AtLeast(Reduced):
        """Asks for 12 channels where what goes in has fewer."""

        def forward(self, tokens: Tensor) -> Tensor:
            batch, channels = len(tokens), max(tokens.shape[2], 12)
            image = tokens.transpose(1, 2).reshape(batch, -1, 8, 8)
            return self.norm(self.reduce(image).reshape(batch, channels, -1).transpose(1, 2))

    net = randomise(nn.Sequential(nn.Conv2d(3, 12, 1), Turned(), AtLeast(12), nn.Linear(12, 4)))
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["0"]
    assert "its size is fixed in the model's code (view in 2)" in str(structure.group("2.reduce").reason)


class TakenAsWide(nn.Module):
    """A layer whose result is taken to be as wide as what goes in; no operator splits or picks channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.inner(x).reshape(len(x), x.shape[1], -1).tanh().view(x.shape))


def test_a_call_finds_the_structure_that_a_trace_finds() -> None:
    """Both groups lose as many, so the plan alone does not show that one width is read for the other."""
    net = randomise(TakenAsWide())
    traced = infoprune.trace(net, X)
    assert [(group.name, group.size) for group in traced.prunable] == [("stem", 16)]
    for filters in (0.5, 0.75):
        result = infoprune.prune(copy.deepcopy(net), X, "l1", filters=filters)
        assert [str(group) for group in result.structure.groups] == [str(group) for group in traced.groups]


class Mixed(nn.Module):
    """Attention whose result is taken to be as wide as what goes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.mix, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, channels = tokens.shape
        parts = self.mix(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = torch.softmax(parts[0] @ parts[1].transpose(-2, -1), -1) @ parts[2]
        return self.out(found.transpose(1, 2).reshape(batch, count, channels))


class Stages(nn.Module):
    """Blocks of attention on streams of two widths, of which the first can lose one head of two only."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.turned = nn.Conv2d(3, 12, 1), Turned()
        self.first, self.down = nn.ModuleList(Mixed(12, 2) for _ in range(blocks)), nn.Linear(12, 24)
        self.second, self.head = nn.ModuleList(Mixed(24, 4) for _ in range(blocks)), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.turned(self.stem(x))
        for block in self.first:
            tokens = tokens + block(tokens)
        tokens = self.down(tokens)
        for block in self.second:
            tokens = tokens + block(tokens)
        return self.head(tokens)


def test_what_one_module_reads_its_siblings_read_too() -> None:
    def runs(blocks: int) -> int:
        net = randomise(Stages(blocks)).eval()
        calls: list[int] = []
        net.stem.register_forward_hook(lambda *_: calls.append(1))
        structure = infoprune.trace(net, X)
        assert [group.name for group in structure.prunable] == ["stem", "down"]
        for stage, group in (("first", "stem"), ("second", "down")):
            names = {slot.tensor for slot in structure.group(group).slots}
            assert names >= {f"{stage}.{i}.{layer}.weight" for i in range(blocks) for layer in ("mix", "out")}
        original, plan = copy.deepcopy(net), structure.plan({"stem": [0], "down": [1, 2]})
        infoprune.shrink(net, plan)
        assert relative_error(original, net, plan, X) < 1e-10
        return len(calls)

    assert runs(2) == runs(5)


class Bottleneck(nn.Module):
    """Three channels, and a layer that makes three more, which are viewed by the width of the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 1)
        self.again, self.widen, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        few = self.squeeze(self.stem(x).relu())
        again = self.again(few).reshape(*few.shape[:2], -1).tanh().unflatten(2, few.shape[2:])
        return self.head(self.widen(again).relu())


def test_widths_with_one_choice_are_told_apart() -> None:
    net = Bottleneck()
    structure = infoprune.trace(net, X)
    (few,) = (group for group in structure.prunable if group.size == 3)
    assert {"squeeze.weight", "again.weight"} <= {slot.tensor for slot in few.slots if slot.dim == 0}
    check_plan(net, X, structure, structure.plan({few.name: [1]}))


class Read(nn.Module):
    """Computes with the width of its map."""

    def __init__(self, follow: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.first, self.head, self.follow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), follow

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        return self.head(self.follow(a, a.shape[1]))


def filled(a: Tensor, width: int) -> Tensor:
    made = torch.zeros_like(a)
    made[:] = width
    return a * made


WITH_A_WIDTH: dict[str, Callable[[Tensor, int], Tensor]] = {
    "uniform": lambda a, width: a * torch.full((width, 1, 1), 1 / width, device=a.device),
    "filled": filled,
    "a whole tensor": lambda a, width: a * torch.tensor(width),
    "a tensor on its device": lambda a, width: a * torch.tensor([1 / width], device=a.device),
    "as a tensor on its device": lambda a, width: a + torch.as_tensor(width, device=a.device),
    "the function's own name": lambda a, width: a * tensor([1 / width], device=a.device),
    "an array on its device": lambda a, width: a * torch.asarray([1 / width], device=a.device),
    "beside a sum": lambda a, width: a * tensor([1 / width, a.sum()], device=a.device)[0],
    "with a gradient": lambda a, width: a * tensor([1 / width], device=a.device, requires_grad=True),
    "complex": lambda a, width: (a * tensor([1j / width], device=a.device)).imag,
    "a complex number": lambda a, width: (a * (1j / width)).imag,
    "a table on its device": lambda a, width: a * tensor([i / width for i in range(64)], device=a.device).view(8, 8),
    "a table": lambda a, width: a * tensor([math.sin(i / width) for i in range(8)]),
    "a new tensor the old way": lambda a, width: a * a.new([1 / width]),
    "a new tensor": lambda a, width: a * a.new_tensor(width),
    "a tensor of sizes": lambda a, width: a * torch.tensor(a.shape).to(a)[1],
    "rolled in space": lambda a, width: a.roll(width // 4, 3),
    "windows": lambda a, width: F.avg_pool2d(a, width // 2 + 1, 1, width // 4),
    "compared": lambda a, width: a * (8 * a.abs() > width),
    "a slope": lambda a, width: F.leaky_relu(a, width),
}


@pytest.mark.parametrize("follow", WITH_A_WIDTH)
def test_a_width_that_is_computed_with_stays(follow: str) -> None:
    reason = infoprune.trace(randomise(Read(WITH_A_WIDTH[follow])), X).group("first").reason
    assert reason is not None
    assert reason.startswith("a factor is computed from its width")


def test_windows_and_rolls_by_numbers_freeze_nothing() -> None:
    net = randomise(Read(lambda a, width: F.avg_pool2d(a.roll((1, width // 2), (3, 1)), 3, 1, 1)))
    assert [group.name for group in infoprune.trace(net, X).prunable] == ["first"]


def test_numbers_that_do_not_depend_on_a_width_freeze_nothing() -> None:
    def follow(a: Tensor, width: int) -> Tensor:
        table = tensor([math.sin(i) for i in range(64)], device=a.device, dtype=a.dtype).view(8, 8)
        a = a * table + tensor([2.0, a.new_tensor(3.0)], device=a.device, dtype=a.dtype, requires_grad=True).sum()
        return (a * tensor(1j)).imag + torch.hann_window(8, dtype=a.dtype) * tensor(a.detach()).sigmoid()

    net = randomise(Read(follow)).double()
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X.double(), "l1", filters=0.5, verify=False).plan
    assert net.first.out_channels == 4
    assert relative_error(original, net, plan, X) < 1e-12


def test_threads_that_trace_at_the_same_time() -> None:
    found: list[list[str]] = []

    def trace() -> None:
        structure = infoprune.trace(Net(), X)
        found.append([str(group) for group in structure.groups])

    threads = [threading.Thread(target=trace) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(groups == found[0] for groups in found)


class States(nn.Module):
    """Four states of each channel, a number that stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gates, self.head = nn.Linear(8, 12), nn.Linear(12, 4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x[:, 0])
        state = tokens.new_zeros(len(tokens), tokens.shape[2], 4)
        for token, gates in zip(tokens.unbind(1), self.gates(tokens).unbind(1), strict=True):
            state = state + token[:, :, None] * gates[:, None]
        return self.head(state.sum(2))


def test_a_new_tensor_of_one_fixed_size_can_lose_channels_in_another_dimension() -> None:
    net = randomise(States()).eval()
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["first"]
    assert "its size is fixed in the model's code (new_zeros" in str(structure.group("gates").reason)
    original, plan = copy.deepcopy(net), structure.plan({"first": [0, 3, 7]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12
