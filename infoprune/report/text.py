"""Format numbers and sentences as a person reads them; shared by the console table and the HTML report."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from infoprune.cost import Cost
from infoprune.report.record import EventRecord, LayerRow, RunRecord, Totals

MINUS = "\N{MINUS SIGN}"


def count(value: float) -> str:
    """Return a number with three significant digits and a unit prefix.

    >>> count(950), count(12_345), count(4_089_284_608)
    ('950', '12.3 k', '4.09 G')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{_three_digits(value / factor)} {prefix}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Return a duration with three significant digits.

    >>> seconds(0.001234), seconds(2.5)
    ('1.23 ms', '2.50 s')
    """
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= 0.9995 * factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value * 1e6:.2f} µs"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as per cent.

    >>> percent(0.4973), percent(1)
    ('49.7 %', '100.0 %')
    """
    return f"{100 * share:.{digits}f} %"


def change(before: float, after: float) -> str:
    """Return a relative change.

    >>> change(200, 100), change(100, 110), change(0, 3), change(5, 5)
    ('−50.0 %', '+10.0 %', '', '±0.0 %')
    """
    if not before:
        return ""
    shift = 100 * (after - before) / before
    return f"{_signed(shift, 1)} %"


def is_share(name: str) -> bool:
    """Return whether a metric of that name is a share of one, to be read as per cent.

    >>> is_share("test/top1"), is_share("val_acc"), is_share("val/loss")
    (True, True, False)
    """
    lowered = name.lower()
    return any(word in lowered for word in ("acc", "top1", "top5", "top-", "precision", "recall", "f1", "auroc", "iou"))


def metric_value(name: str, value: float | None) -> str:
    """Return a metric's value in readable form.

    >>> metric_value("val/acc", 0.9731), metric_value("val/loss", 0.04218), metric_value("val/loss", None)
    ('97.31 %', '0.0422', 'not finite')
    """
    if value is None:
        return "not finite"
    return percent(value, 2) if is_share(name) and 0 <= value <= 1 else f"{value:.3g}"


def metric_change(name: str, before: float | None, after: float | None) -> str:
    """Return how far a metric moved: in points where it is a share.

    Args:
        name: Of the metric, which tells whether it is a share.
        before: Its value before the cut, None if unknown.
        after: Its value afterwards, None if unknown.

    >>> metric_change("val/acc", 0.98, 0.975), metric_change("val/loss", 0.2, 0.3)
    ('−0.50 points', '+50.0 %')
    """
    if before is None or after is None:
        return ""
    if is_share(name) and 0 <= before <= 1 and 0 <= after <= 1:
        return f"{_signed(100 * (after - before), 2)} points"
    return change(before, after)


def choose_metric(names: list[str]) -> str | None:
    """Return the name of the metric that best stands for quality: top-1 or accuracy, on test data if there is any.

    >>> choose_metric(["val/loss", "val/top1", "test/top5", "test/top1"]), choose_metric(["loss"]), choose_metric([])
    ('test/top1', 'loss', None)
    """
    order = ("top1", "top-1", "acc")
    rank = {name: next((i for i, word in enumerate(order) if word in name.lower()), len(order)) for name in names}
    stage = {name: next((i for i, word in enumerate(("test", "val")) if word in name.lower()), 2) for name in names}
    return min(names, key=lambda name: (rank[name], stage[name], name), default=None)


def joined(items: list[str]) -> str:
    """Return items as a list in words.

    >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def group_name(name: str) -> str:
    """Return a channel group's name in readable form.

    >>> group_name("layer2.0.conv2#2"), group_name("conv1")
    ('layer2.0.conv2, second part', 'conv1')
    """
    layer, _, number = name.partition("#")
    ordinals = {"2": "second", "3": "third", "4": "fourth"}
    return f"{layer}, {ordinals.get(number, f'{number}th')} part" if number else layer


def event_line(event: EventRecord, unpruned: Cost, frozen: Collection[str] = ()) -> str:
    """Return one line about a pruning event: when, how many filters went, and what is left of the unpruned model.

    Args:
        event: the event.
        unpruned: what the model cost before the first event.
        frozen: channel groups that could not be pruned; their filters are not counted.

    >>> from infoprune.report.record import LayerRow
    >>> rows = [LayerRow("conv", "conv", "conv", 16, 12, 160, 120, 1600, 1200)]
    >>> event_line(EventRecord(0, 2, 400, "l1", 6000, 900, rows), Cost(8000, 1000))
    'Pruned at the start of epoch 2: 4 of 16 filters went, 6.00 k MACs (75.0 %) and 900 parameters (90.0 %) are left'
    """
    filters, left = filters_of(event.layers, frozen)
    macs, params = Cost(event.macs, event.params).ratio(unpruned)
    line = (
        f"Pruned at the start of epoch {event.epoch}: {filters - left:,} of {filters:,} filters went, "
        f"{count(event.macs)} MACs ({percent(macs)}) and {count(event.params)} parameters ({percent(params)}) are left"
    )
    name = choose_metric(list(event.metrics_cut))
    if name is None:
        return line
    before = event.metrics_before.get(name)
    was = f", {metric_value(name, before)} before it" if before is not None else ""
    return f"{line}; {name} is {metric_value(name, event.metrics_cut[name])} right after the cut{was}"


def filters_of(layers: Iterable[LayerRow], frozen: Collection[str]) -> tuple[int, int]:
    """Return the number of filters that could be pruned, before and after; a classifier's outputs are not among them.

    >>> rows = [LayerRow("conv", "conv", "conv", 16, 12, 160, 120, 1600, 1200)]
    >>> filters_of([*rows, LayerRow("head", "head", "linear", 10, 10, 160, 120, 1600, 1200)], {"head": "is an output"})
    (16, 12)
    """
    rows = [row for row in layers if row.group not in frozen]
    return sum(row.channels_before for row in rows), sum(row.channels_after for row in rows)


def summary(record: RunRecord) -> list[str]:
    """Return what was done, what it saved and what it cost, a sentence each."""
    return [_what_was_done(record), _what_it_saved(record), _what_it_cost(record)]


def _what_was_done(record: RunRecord) -> str:
    if not record.events:
        return f"{record.model} was trained, but no pruning event took place."
    filters, left = filters_of(record.layers, record.frozen)
    removed = filters - left
    if all(event.epoch < 0 for event in record.events):
        return (
            f"{record.model} lost {removed:,} of its {filters:,} filters in one cut without training, chosen by "
            f"{record.criterion}."
        )
    epochs = joined([str(event.epoch) for event in record.events])
    steps = "one step" if len(record.events) == 1 else f"{len(record.events)} steps"
    at = "epoch" if len(record.events) == 1 else "epochs"
    return (
        f"{record.model} lost {removed:,} of its {filters:,} filters in {steps}, at the start of {at} {epochs}, "
        f"chosen by {record.criterion}."
    )


def _what_it_saved(record: RunRecord) -> str:
    before, after = record.before, record.after
    sentence = (
        f"It now takes {count(after.macs)} multiply-accumulates instead of {count(before.macs)} "
        f"({percent(after.macs / before.macs)}) and {count(after.params)} parameters instead of {count(before.params)} "
        f"({percent(after.params / before.params)})"
    )
    if before.latency_s and after.latency_s:
        ratio = before.latency_s / after.latency_s
        verdict = f"{ratio:.2f} times as fast" if ratio > 1.02 else "no faster on this device"
        if ratio > 1.02 and within_spread(before, after):
            verdict = "a difference within the spread of the measurements"
        pair = f"{seconds(after.latency_s)} instead of {seconds(before.latency_s)}"
        sentence += f"; a forward pass takes {pair}, {verdict}"
    return sentence + "."


def _what_it_cost(record: RunRecord) -> str:
    name = record.metric
    if name is None or name not in record.after.metrics:
        return "No metric was measured at the end of the run."
    after = record.after.metrics[name]
    if name not in record.before.metrics:
        return f"{name} is {metric_value(name, after)} at the end; it was not measured before the first pruning event."
    before = record.before.metrics[name]
    moved = metric_change(name, before, after)
    then, now = metric_value(name, before), metric_value(name, after)
    by = f" ({moved})" if moved else ""
    if not record.events or record.events[0].epoch < 0:
        return f"{name} went from {then} to {now}{by}."
    return (
        f"{name} was {then} just before the first cut (start of epoch {record.events[0].epoch}) and is {now} at the "
        f"end of training{by}: that training, too, is part of the change."
    )


def within_spread(before: Totals, after: Totals) -> bool:
    """Return whether two latencies differ by no more than the spread of their runs (between the quartiles).

    >>> before = Totals(2, 2, latency_s=1.0, latency_spread_s=0.1)
    >>> [within_spread(before, Totals(1, 1, latency_s=after, latency_spread_s=0.2)) for after in (0.9, 0.5)]
    [True, False]
    """
    spread = max(before.latency_spread_s or 0.0, after.latency_spread_s or 0.0)
    return abs((before.latency_s or 0.0) - (after.latency_s or 0.0)) <= spread


def speed_remarks(before: Totals, after: Totals) -> list[str]:
    """Return what the measured latency says about a cut that does not pay on this device.

    >>> speed_remarks(Totals(100, 9, latency_s=2.0), Totals(50, 5, latency_s=1.1))
    []
    >>> speed_remarks(Totals(100, 9, latency_s=2.0), Totals(50, 5, latency_s=2.1))[0].partition(":")[0]
    'This cut does not pay on this device'
    """
    if not (before.latency_s and after.latency_s and before.macs):
        return []
    ideal, real = before.macs / max(after.macs, 1), before.latency_s / after.latency_s
    if ideal <= 1.1 or real >= 1 + 0.25 * (ideal - 1):
        return []
    unclear = real > 1.02 and within_spread(before, after)
    verdict = "does not pay" if real <= 1.02 or unclear else "pays little"
    return [
        f"This cut {verdict} on this device: the MACs would allow {ideal:.1f} times the speed; measured on this "
        f"example input: {real:.2f} times{', within the spread of the runs' * unclear}. Narrow layers often cost more "
        "than their MACs say: try round_to=16, larger batches, or measure where the model will run (infoprune "
        "benchmark)."
    ]


def total_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Return the before/after table: what, before, after, change."""
    before, after = record.before, record.after
    channels = filters_of(record.layers, record.frozen)
    rows = [
        ("filters", f"{channels[0]:,}", f"{channels[1]:,}", change(*channels)),
        ("parameters", count(before.params), count(after.params), change(before.params, after.params)),
        ("MACs", count(before.macs), count(after.macs), change(before.macs, after.macs)),
    ]
    if before.latency_s is not None and after.latency_s is not None:
        shift = "within the spread" if within_spread(before, after) else change(before.latency_s, after.latency_s)
        rows.append(("latency", _latency(before), _latency(after), shift))
    for name in shown_metrics(record):
        b, a = before.metrics[name], after.metrics[name]
        rows.append((name, metric_value(name, b), metric_value(name, a), metric_change(name, b, a)))
    return rows


def shown_metrics(record: RunRecord) -> list[str]:
    """Return the metrics that were measured before and after, the run's chosen one first."""
    both = [name for name in record.after.metrics if name in record.before.metrics]
    return sorted(both, key=lambda name: (name != record.metric, name))


def _latency(totals: Totals) -> str:
    assert totals.latency_s is not None
    spread = f" ± {seconds(totals.latency_spread_s)}" if totals.latency_spread_s is not None else ""
    return seconds(totals.latency_s) + spread


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return (MINUS if value < 0 else "+") + text
