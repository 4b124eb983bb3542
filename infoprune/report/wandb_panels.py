"""Log a pruning run to Weights & Biases: step metrics, tables, histograms, widths, one artifact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from infoprune.report.record import EventRecord, LayerRow, RunRecord
from infoprune.report.scalars import scores_by_fate, summary_values
from infoprune.report.svg import heat_map
from infoprune.report.text import group_name

MAX_UNITS = 10_000
"""Most rows of a table of units; W&B itself stops showing a table at this many."""


def define(run: Any, names: Iterable[str] = ()) -> None:
    """Draw all metrics below ``prune/`` against the number of the pruning event.

    Args:
        run: the W&B run.
        names: metrics to define one by one as well: Lightning's own pattern ``*`` also matches them, and an exact name
            goes before every pattern.
    """
    run.define_metric("prune/event", hidden=True)
    run.define_metric("prune/*", step_metric="prune/event")
    for name in names:
        if name != "prune/event":
            run.define_metric(name, step_metric="prune/event")


def event_panels(event: EventRecord, events: Sequence[EventRecord]) -> dict[str, Any]:
    """Return the panels of one event: its layers and units as tables, histograms of scores, all widths over all events.

    Args:
        event: the event.
        events: all events so far, this one included.
    """
    panels: dict[str, Any] = {
        "prune/layers": _layers(event),
        "prune/widths": _widths(events),
        "prune/heat_map": _heat_map(events),
    }
    if event.scores:
        panels["prune/units"] = _units(event)
        panels.update(_histograms(event))
    return panels


def artifact(run_id: str, record: RunRecord, folder: Path) -> wandb.Artifact:
    """Return the plan, the pruned model, the record and the report of a run as one versioned artifact.

    Args:
        run_id: Of the W&B run.
        record: What the run did.
        folder: Where its files are.
    """
    made = wandb.Artifact(f"pruned-{run_id}", type="model", metadata={**summary_values(record), **record.options})
    for path in record.files.values():
        if (folder / path).is_file():
            made.add_file(str(folder / path), name=path)
    return made


def events_table(events: Sequence[EventRecord]) -> wandb.Table:
    """Return all events of a run with the metrics before and after each: one row an event."""
    names = list(dict.fromkeys(name for event in events for name in event.metrics_before))
    columns = ["event", "epoch", "step", "criterion", "macs", "params"]
    columns += [f"{moment} {name}" for name in names for moment in ("before", "after")]
    rows: list[list[Any]] = [
        [event.index + 1, event.epoch, event.global_step, event.criterion, event.macs, event.params]
        + [metrics.get(name) for name in names for metrics in (event.metrics_before, event.metrics_after)]
        for event in events
    ]
    return wandb.Table(columns=[*columns], data=rows)


def _layers(event: EventRecord) -> wandb.Table:
    names = [field.name for field in fields(LayerRow)]
    return wandb.Table(columns=[*names], data=[[getattr(row, name) for name in names] for row in event.layers])


def _units(event: EventRecord) -> wandb.Table:
    rows = [
        [group_name(group), unit, score, unit in kept]
        for group, scores in event.scores.items()
        for kept in [set(event.kept.get(group, range(len(scores))))]
        for unit, score in enumerate(scores)
    ]
    return wandb.Table(columns=["group", "unit", "score", "kept"], data=rows[:MAX_UNITS])


def _histograms(event: EventRecord) -> dict[str, Any]:
    """Return two histograms over the same bins, so that the cut shows as the gap between what went and what stayed."""
    fates = scores_by_fate(event)
    edges = np.histogram_bin_edges(np.concatenate([*fates.values()]), bins=64)
    return {
        f"prune/scores/{fate}": wandb.Histogram(np_histogram=np.histogram(scores, bins=edges))
        for fate, scores in fates.items()
    }


def _heat_map(events: Sequence[EventRecord]) -> wandb.Html:
    """Return what is left of every layer after each event, layers down and events across."""
    first = {row.name: row.channels_before for row in events[0].layers}
    after = [{row.name: row.channels_after for row in event.layers} for event in events]
    shares = [[1.0, *(event.get(name, size) / size for event in after)] for name, size in first.items()]
    columns = ["before", *(f"event {event.index + 1}" for event in events)]
    return wandb.Html(heat_map(list(first), columns, shares), inject=False)


def _widths(events: Sequence[EventRecord]) -> Any:
    """Return one chart of every group's width over the events: lines that say how much of each is left."""
    first = {row.group: row.channels_before for row in events[0].layers}
    shrunk = {row.group for event in events for row in event.layers if row.channels_after < row.channels_before}
    names = [group for group in first if group in shrunk]
    lines = [
        [1.0, *({row.group: row.channels_after for row in event.layers}[name] / first[name] for event in events)]
        for name in names
    ]
    return wandb.plot.line_series(
        xs=list(range(len(events) + 1)), ys=lines or [[1.0] * (len(events) + 1)], keys=names or ["all groups"],
        title="Share of each group's filters that is left", xname="event",
    )  # fmt: skip
