"""The scalars of a pruning event, by the names under which every logger receives them."""

from __future__ import annotations

from infoprune.report.record import EventRecord, RunRecord


def event_scalars(event: EventRecord) -> dict[str, float]:
    """Return the per-event and per-layer scalars of one event.

    ``prune/event`` counts from 1; ``prune/macs`` and ``prune/params`` are what is left;
    ``prune/width/<layer>`` is the number of filters that the layer still has; ``prune/before_cut/<metric>`` is the last
    validation before the event.

    Args:
        event: the event.

    Example:
        >>> event_scalars(EventRecord(0, epoch=2, global_step=40, criterion="l1", macs=80, params=7))
        {'prune/event': 1.0, 'prune/epoch': 2.0, 'prune/macs': 80.0, 'prune/params': 7.0}
    """
    scalars = {
        "prune/event": event.index + 1.0,
        "prune/epoch": float(event.epoch),
        "prune/macs": float(event.macs),
        "prune/params": float(event.params),
    }
    scalars.update({f"prune/width/{row.name}": float(row.channels_after) for row in event.layers})
    scalars.update(_stages("before_cut", event.metrics_before))
    return scalars


def scores_by_fate(event: EventRecord) -> dict[str, list[float]]:
    """Return the scores of all units that an event kept, and of those that it removed.

    Args:
        event: the event.

    Example:
        >>> event = EventRecord(0, 2, 40, "l1", 80, 7, scores={"conv": [0.3, 0.1, 0.2]}, kept={"conv": [0, 2]})
        >>> scores_by_fate(event)
        {'kept': [0.3, 0.2], 'removed': [0.1]}
    """
    fates: dict[str, list[float]] = {"kept": [], "removed": []}
    for group, scores in event.scores.items():
        stays = set(event.kept.get(group, range(len(scores))))
        for unit, score in enumerate(scores):
            fates["kept" if unit in stays else "removed"].append(score)
    return fates


def summary_values(record: RunRecord) -> dict[str, float]:
    """Return the values of a whole run by which runs are compared and sorted.

    Args:
        record: the record of the run.
    """
    before, after = record.before, record.after
    values = {
        "prune/macs_kept": after.macs / before.macs if before.macs else 1.0,
        "prune/params_kept": after.params / before.params if before.params else 1.0,
        "prune/events": float(len(record.events)),
    }
    if before.latency_s and after.latency_s:
        values["prune/speedup"] = before.latency_s / after.latency_s
        values["prune/before/latency_s"] = before.latency_s
        values["prune/after/latency_s"] = after.latency_s
    values.update(_stages("before", before.metrics))
    values.update(_stages("after", after.metrics))
    return values


def _stages(moment: str, metrics: dict[str, float | None]) -> dict[str, float]:
    return {f"prune/{moment}/{name}": value for name, value in metrics.items() if value is not None}
