"""Rows and events that are collected agree with the shrunk model itself."""

from __future__ import annotations

import copy

import pytest
import torch

from infoprune import PruneResult, prune
from infoprune.models import CifarResNet
from infoprune.report import EventRecord
from infoprune.report.collect import event_record, kept_units, layer_rows, whole_run
from infoprune.structure import PruningPlan, trace


def event_of(index: int, result: PruneResult) -> EventRecord:
    return event_record(
        index, 3 * index, 30 * index, "l1", result.structure, result.plan, result.scores, {"val/acc": 0.9}
    )


@pytest.fixture
def model() -> CifarResNet:
    return CifarResNet(depth=8)


INPUTS = torch.zeros(1, 3, 16, 16)


def test_rows_match_the_modules_before_and_after(model: CifarResNet) -> None:
    original = copy.deepcopy(model)
    result = prune(model, INPUTS, criterion="l1", filters=0.5)
    rows = layer_rows(result.structure, result.plan)
    assert [row.name for row in rows][:2] == ["conv1", "layer1.0.conv1"]
    assert {row.kind for row in rows} == {"conv", "linear"}
    for row in rows:
        before, after = original.get_submodule(row.name), model.get_submodule(row.name)
        assert (row.channels_before, row.channels_after) == (len(before.weight), len(after.weight))
        assert row.params_before == sum(p.numel() for p in before.parameters())
        assert row.params_after == sum(p.numel() for p in after.parameters())
    assert sum(row.macs_before for row in rows) == result.before.macs
    assert sum(row.macs_after for row in rows) == result.after.macs


def test_an_empty_plan_changes_nothing(model: CifarResNet) -> None:
    rows = layer_rows(trace(model, INPUTS), PruningPlan())
    assert all(row.channels_before == row.channels_after and row.macs_before == row.macs_after for row in rows)
    assert rows[-1].group == "linear"


def test_kept_units_are_the_best_scored(model: CifarResNet) -> None:
    result = prune(model, INPUTS, criterion="l1", filters=0.75, round_to=1)
    for group in result.structure.prunable:
        kept = kept_units(group, result.plan)
        assert len(kept) == group.size - group.size // 4
        scores = result.scores[group.name]
        gone = [unit for unit in range(group.size) if unit not in kept]
        assert scores[gone].max() <= scores[kept].min()


def test_two_events_make_one_run(model: CifarResNet) -> None:
    events = [event_of(i, prune(model, INPUTS, criterion="l1", filters=0.75)) for i in range(2)]
    rows = whole_run(events)
    assert [row.channels_before for row in rows] == [row.channels_before for row in events[0].layers]
    assert [row.channels_after for row in rows] == [len(model.get_submodule(row.name).weight) for row in rows]
    assert sum(row.macs_after for row in rows) == events[1].macs
    assert events[1].params == sum(p.numel() for p in model.parameters())
    assert set(events[0].kept) == set(events[0].scores)
    assert whole_run([]) == []
