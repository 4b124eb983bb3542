"""Show a pruning run in TensorBoard: histograms of scores, and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from infoprune.report.record import EventRecord, RunRecord
from infoprune.report.scalars import scores_by_fate
from infoprune.report.table import pair
from infoprune.report.text import count, summary, total_rows


def add_event(writer: Any, event: EventRecord) -> None:
    """Add the histograms of an event's scores and the table of its layers, at the step of the event.

    Args:
        writer: the SummaryWriter of the logger.
        event: the event.
    """
    for fate, scores in scores_by_fate(event).items():
        if scores:
            writer.add_histogram(f"prune/scores/{fate}", np.array(scores), event.global_step)
    writer.add_text("prune/layers", layers_as_markdown(event), event.global_step)


def add_run(writer: Any, record: RunRecord, step: int) -> None:
    """Add what the run did in sentences, and the table of the whole model before and after.

    Args:
        writer: the SummaryWriter of the logger.
        record: what the run did.
        step: the global step to add it at.
    """
    table = _markdown(["", "before", "after", "change"], total_rows(record))
    writer.add_text("prune/summary", "\n\n".join([" ".join(summary(record)), *record.warnings, table]), step)


def layers_as_markdown(event: EventRecord) -> str:
    """Return one row a layer that lost filters or inputs: filters, parameters and MACs, before -> after.

    Args:
        event: the event.
    """
    rows = [
        [
            row.name,
            pair(str(row.channels_before), str(row.channels_after)),
            pair(count(row.params_before), count(row.params_after)),
            pair(count(row.macs_before), count(row.macs_after)),
        ]
        for row in event.layers
        if (row.channels_before, row.macs_before) != (row.channels_after, row.macs_after)
    ]
    return _markdown(["layer", "filters", "parameters", "MACs"], rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
