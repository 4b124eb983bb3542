"""A pass on shapes computes the numbers that a model's control flow reads."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.structure.tracing import values

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Finder(nn.Module):
    """Keeps the places whose score is above the threshold and looks at the channels there once more."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.widen = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)
        self.scores, self.look = nn.Conv2d(12, 1, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.widen(torch.relu(self.features(x))))
        scores = self.scores(features).flatten().sigmoid()
        steps = torch.tensor([2.0], device=x.device)
        found = torch.where(scores * steps > 0.9)[0]
        kept = features.flatten(2)[0].T[found[: int(min(len(found), 20))]]
        return scores, self.look(kept)


def check(net: nn.Module) -> infoprune.Structure:
    structure = infoprune.trace(net, X)
    plan = structure.plan({group.name: range(group.size // 2) for group in structure.prunable})
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    assert infoprune.verify(original, net, plan, X).max_error < 1e-10
    return structure


@pytest.mark.parametrize("budget", [values.BUDGET, 0], ids=["computed", "made up"])
def test_places_that_are_found_by_their_scores(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BUDGET", budget)
    torch.manual_seed(2)
    structure = check(Finder())
    assert structure.passes.on_shapes
    assert {group.name for group in structure.prunable} == {"features", "widen"}


class Gated(nn.Module):
    """Takes one of two layers, by what the first has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low, self.high = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        nn.init.constant_(self.first.bias, 9.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z: Tensor = self.high(y) if y.mean() > 1 else self.low(y)
        return z


def test_the_branch_that_the_example_takes_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = infoprune.trace(Gated(), X)
    assert structure.passes.on_shapes
    assert not any(record.module == "low" for record in structure.records)
    monkeypatch.setattr(values, "BUDGET", 0)  # made-up numbers take the other branch, so real ones have to decide
    structure = infoprune.trace(Gated(), X)
    assert not structure.passes.on_shapes
    assert any(record.module == "high" for record in structure.records)


def test_numbers_behind_writes_in_place_are_those_of_the_time() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            level = x.mean().abs() + 1
            twice = level * 2
            level.add_(5)
            self.seen += [float(level), float(twice)]
            y: Tensor = self.last(torch.relu(self.first(x)))
            return y

    net = Writing()
    net(X)
    expected = list(net.seen)
    seen: list[float] = []
    net.seen = seen  # the trace restores the list, so what it noted is looked at from inside
    hook = net.last.register_forward_hook(lambda *_: notes.append(list(net.seen)))
    notes: list[list[float]] = []
    infoprune.trace(net, X)
    hook.remove()
    assert notes[0] == pytest.approx(expected)


class Queue(nn.Module):
    """Compares features with those of earlier batches, and counts in a buffer where the next ones go."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.features, self.widen, self.embed = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Linear(12, 6)
        self.earlier: Tensor
        self.place: Tensor
        self.register_buffer("earlier", torch.randn(length, 6))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        made = self.embed(self.widen(self.features(x).relu()).relu().mean((2, 3)))
        like = made @ self.earlier.clone().T
        start = int(self.place)
        with torch.no_grad():
            self.earlier[start : start + len(made)] = made.detach()[: len(self.earlier) - start]
            self.place.add_(len(made)).remainder_(len(self.earlier))
        return like


@pytest.mark.parametrize("length", [2, 3, 64])
def test_a_counter_in_a_buffer_starts_anew_in_each_pass(length: int) -> None:
    net = Queue(length)
    before = copy.deepcopy(net.state_dict())
    structure = infoprune.trace(net, X.expand(2, -1, -1, -1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [group.name for group in structure.prunable][:2] == ["features", "widen"]
    plan = structure.plan({"features": range(4), "widen": range(5)})
    infoprune.shrink(net, plan)
    assert net(X.expand(2, -1, -1, -1)).shape == (2, length)
    assert (net.features.out_channels, net.widen.out_channels) == (4, 7)


def test_few_of_very_many_scores_that_are_made_up_are_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BUDGET", 0)
    found: list[int] = []

    class ManyScores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.scores = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1024, 1)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.scores(torch.relu(self.features(x))).flatten().sigmoid()
            kept = torch.where(scores > 0.5)[0]
            found.append(len(kept))
            return scores[kept]

    structure = infoprune.trace(ManyScores(), torch.zeros(1, 3, 33, 33))
    assert [group.name for group in structure.prunable] == ["features"]
    assert max(found) <= 1024 * 33 * 33 / 60
    assert min(found) > 0


@pytest.mark.parametrize(
    "move",
    [
        lambda y: y.cpu(),
        lambda y: y.to("cpu").to(y.device),
        lambda y: (y > 0).type(torch.FloatTensor) * y,
    ],
    ids=["cpu", "to and back", "a type of the CPU"],
)
def test_a_move_to_the_cpu_freezes_nothing(move: Callable[[Tensor], Tensor]) -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(move(torch.relu(self.first(x))))

    assert [group.name for group in check(Moved()).prunable] == ["first"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_frozen_script_is_traced_as_it_runs_once_it_is_optimised() -> None:
    body = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()))
    net = nn.Sequential(body, nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    for _ in range(2):
        assert [group.name for group in infoprune.trace(net, X).prunable] == ["1"]
