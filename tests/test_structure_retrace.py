"""Labelling a recorded pass anew: quicker than another run of the model, and only where that sees the same numbers."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure.labels.tensor_labels import Storage, TensorLabels
from infoprune.structure.tracing.session import TraceSession
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Attention whose heads have to go as wholes, for which the trace labels what it has recorded anew."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.mix = 2, nn.Linear(12, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        query, value = self.mix(tokens).reshape(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, query, value).transpose(1, 2).reshape(batch, count, -1)


class Placed(nn.Module):
    """Adds what a layer makes of the places of tokens, which the code writes into a tensor."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.stem, self.places, self.attention = nn.Conv2d(3, 12, 1), nn.Linear(2, 12), Attention()
        self.head, self.written, self.runs = nn.Linear(12, 3), written, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count()
        numbers = torch.arange(16.0)
        if self.written:
            places = torch.zeros(16, 2)
            places[:, 0], places[:, 1] = numbers // 4, numbers % 4
        else:
            places = torch.stack([numbers // 4, numbers % 4], 1)
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens + self.places(places)))

    def count(self) -> None:
        """Count a run; replaced in the test, since a trace puts attributes back."""


class Shifted(nn.Module):
    """Adds a number that is zero, and overwrites it when that is done."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, 12, 1), Attention(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.zeros(())
        features = self.stem(x).relu() + shift
        shift.add_(1)
        tokens = features.flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens)) + tokens.sum(2, keepdim=True)


def test_a_pass_that_writes_numbers_is_not_run_again() -> None:
    def runs(written: bool) -> int:
        net, calls = randomise(Placed(written)), []
        net.count = lambda: calls.append(1)
        structure = infoprune.trace(net, X)
        assert {"stem", "attention.mix"} <= {group.name for group in structure.prunable}
        return len(calls)

    assert runs(written=True) == runs(written=False)


def test_a_number_that_is_overwritten_later_is_looked_at_as_it_was() -> None:
    net = randomise(Shifted())
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    plan = structure.plan({"stem": [0, 3, 4], "attention.mix": [1]})  # one as large as this would still add to sums
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("in_training", [False, True])
def test_train_mode_is_kept_where_it_uses_more(in_training: bool) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.spare, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            features = self.stem(x).relu()
            made: Tensor = self.head(features)
            return (made, self.spare(features)) if in_training and self.training else made

    structure = infoprune.trace(Spare(), X)
    assert [train for train, _ in structure.passes.traced] == [False, True][: 1 + in_training]
    assert not structure.group("stem").frozen
    assert ("spare.weight" in {slot.tensor for slot in structure.group("stem").slots}) is in_training


class Grouped(nn.Module):
    """Groups of two channels, whose positions are added up; an auxiliary head that training alone uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4, bias=False)
        self.head, self.auxiliary = nn.Conv2d(2, 5, 1), nn.Conv2d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = sum(self.grouped(self.stem(x).relu()).chunk(4, 1))
        made: Tensor = self.head(features)
        return (made, self.auxiliary(features)) if self.training else made


def test_an_operator_lets_channels_go_in_the_same_way_in_eval_and_train_mode() -> None:
    net = randomise(Grouped())
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    assert [train for train, _ in structure.passes.traced] == [False, True]
    assert [(group.name, group.size) for group in structure.prunable] == [("stem", 2), ("grouped", 2)]
    plan = structure.plan({"stem": [0], "grouped": [1]})
    infoprune.shrink(net, plan)
    assert net.grouped.weight.shape == (4, 1, 1, 1)
    assert relative_error(original, net, plan, X) < 1e-12
    assert [tuple(made.shape) for made in net.train()(X)] == [(2, 5, 4, 4)] * 2


class Points(nn.Module):
    """Each query reads four tokens in each head, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 3, 24
        self.values, self.weights, self.out = nn.Linear(24, 24), nn.Linear(24, 3 * 4), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        values = self.values(x).view(batch, count, self.heads, self.width // self.heads)[:, :4]
        weights = self.weights(x).view(batch, count, self.heads, 4).softmax(-1)
        return self.out(torch.einsum("bnhp,bphd->bnhd", weights, values).reshape(batch, count, self.width))


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.points, self.head = nn.Conv2d(3, 24, 1), Points(), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(1)
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(tokens + self.points(tokens))


RUNS: list[int] = []


def test_a_probe_plan_is_not_run_dry_again_where_nothing_has_changed() -> None:
    RUNS.clear()
    structure = infoprune.trace(randomise(Reading()), X)
    assert [group.name for group in structure.prunable] == ["stem"]
    assert len(RUNS) == 3  # traced, run dry with a conflict, and without


class Boxes(nn.Module):
    """Three layers whose channels leave the model as so many boxes of so many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.heads = nn.ModuleList(nn.Conv2d(12, boxes * 6, 1) for boxes in (2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        found = [head(x).view(len(x), -1, 6, 4, 4).permute(0, 3, 4, 1, 2).flatten(1, 3) for head in self.heads]
        return torch.cat(found, dim=1)


def test_other_ways_that_free_nothing_are_tried_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    retrace = TraceSession.retrace
    monkeypatch.setattr(TraceSession, "retrace", lambda self: (runs.append(self), retrace(self)))
    structure = infoprune.trace(Boxes(), X)
    assert [group.name for group in structure.prunable] == ["stem"]
    assert len(runs) == 1


def labels_held() -> int:
    return sum(isinstance(held, TensorLabels | Storage) for held in gc.get_objects())


def test_labels_are_freed_with_their_pass_without_the_garbage_collector() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    gc.collect()
    gc.disable()
    try:
        before = labels_held()  # by other tests
        infoprune.trace(net, torch.randn(2, 4))
        assert labels_held() == before
    finally:
        gc.enable()
