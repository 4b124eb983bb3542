"""The report of a run as one self-contained HTML page: no scripts, no network; light, dark, on paper, on a phone."""

from __future__ import annotations

import math
import re
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from infoprune.report.coupling import places, shortened
from infoprune.report.record import EventRecord, LayerRow, RunRecord
from infoprune.report.svg import Panel, loss_curve, run_chart, score_curve
from infoprune.report.text import (
    MINUS,
    change,
    choose_metric,
    count,
    group_name,
    is_share,
    joined,
    metric_value,
    percent,
    summary,
    total_rows,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser lets the page do: style itself; no script and no request to anywhere."""


def render_html(record: RunRecord) -> str:
    """Return the report of a run as one HTML page.

    Args:
        record: the run.

    Returns:
        The whole page; every text of the record is escaped, sections without content are left out.
    """
    return (
        environment()
        .get_template("report.html")
        .render(
            record=record,
            policy=POLICY,
            css=style(),
            **_head(record),
            **_tables(record),
            **run_charts(record),
        )
    )


def style() -> Markup:
    """Return the pages' style sheet."""
    return Markup(files("infoprune.report").joinpath("report.css").read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Return the templates' environment: everything is escaped, and a missing value is an error."""
    made = Environment(
        loader=PackageLoader("infoprune", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(count=count, group_name=group_name)
    made.globals.update(
        metric_value=metric_value,
        places=places,
        shortened=shortened,
        score_curve=lambda scores, removed: Markup(score_curve(scores, removed)),
        loss_curve=_loss_curve,
    )
    return made


def _loss_curve(event: EventRecord, group: str) -> Markup:
    """Draw the losses of a group's cuts on the scale of all groups of the event."""
    highest = max(max(curve.values()) for curve in event.curves.values())
    points = [(float(units), loss) for units, loss in event.curves[group].items()]
    whole = int(max(units for units, _ in points))
    return Markup(loss_curve(points, len(event.kept.get(group, range(whole))), highest))


def _head(record: RunRecord) -> dict[str, Any]:
    facts = [record.created[:16].replace("T", " "), record.device, f"infoprune {record.version}"]
    headline = record.model
    if record.before.macs:
        headline = f"{record.model} at {percent(record.after.macs / record.before.macs, 0)} of its MACs"
    shown = ("parameters", "MACs", "latency", record.metric)
    return {
        "headline": headline,
        "kicker": " · ".join(fact for fact in facts if fact),
        "sentences": Markup(" ".join(_unbroken(escape(sentence)) for sentence in summary(record))),
        "tiles": [
            (what, shift, what in shown[:3] and shift.startswith(MINUS))  # a cost that fell
            for what, _, _, shift in total_rows(record)
            if shift and what in shown
        ],
    }


def _unbroken(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=%|points|[kMGT]\b|[mµ]?s\b)", "&nbsp;", text)


def _tables(record: RunRecord) -> dict[str, Any]:
    widest = max((row.channels_before for row in record.layers), default=1)
    detailed = next((event for event in reversed(record.events) if event.details), None)
    figures = detailed.details.values() if detailed else ()
    return {
        "total_rows": total_rows(record),
        "layer_rows": [_layer_row(row, widest) for row in record.layers],
        "scored_events": [event for event in record.events if event.scores],
        "measured_event": next((event for event in reversed(record.events) if event.curves), None),
        "detailed_event": detailed,
        "detail_columns": list(dict.fromkeys(name for of_layer in figures for name in of_layer)),
        "event_metric": _event_metric_name(record),
        "cuts_measured": any(event.metrics_cut for event in record.events),
        "facts": _facts(record),
    }


def _layer_row(row: LayerRow, widest: int) -> tuple[LayerRow, str, str, str]:
    """Return a layer, the length of its bar and of the part that stayed in per cent, and the change of its MACs."""
    bar, kept = 100 * math.sqrt(row.channels_before / widest), 100 * row.channels_after / row.channels_before
    shift = change(row.macs_before, row.macs_after) if row.macs_after != row.macs_before else ""
    return row, f"{bar:.2f}", f"{kept:.2f}", shift


def _facts(record: RunRecord) -> dict[str, str]:
    return {
        "command": record.command,
        "seed": "" if record.seed is None else str(record.seed),
        "device": record.device,
        "versions": joined([f"{name} {version}" for name, version in record.versions.items()]),
        **{name.replace("_", " "): as_option(value) for name, value in record.options.items()},
    }


def run_charts(record: RunRecord) -> dict[str, Any]:
    """Draw the run twice, for wide and for narrow screens; nothing where the cut was made without training."""
    panels = _run_panels(record)
    if not panels or all(event.epoch < 0 for event in record.events):
        return {"wide_chart": "", "narrow_chart": ""}
    events = [float(event.epoch) for event in record.events]
    return {
        "wide_chart": Markup(run_chart(panels, events, 720)),
        "narrow_chart": Markup(run_chart(panels, events, 340)),
    }


def _run_panels(record: RunRecord) -> list[Panel]:
    panels = []
    names = [name for entry in record.history for name in entry if name not in ("epoch", "macs")]
    metric = choose_metric(list(dict.fromkeys(names)))
    if metric is not None:
        # The validation of an epoch takes place at its end, a pruning event at its start.
        points = [(epoch + 1.0, value) for epoch, value in _series(record, metric)]
        if points:
            cuts = [(float(event.epoch), event.metrics_cut.get(metric)) for event in record.events]
            marks = [(epoch, value) for epoch, value in cuts if value is not None]
            panels.append(Panel(metric, points, lambda value: _tick(metric, value), 170, marks=marks))
    if record.events and record.before.macs:
        full = record.before.macs
        steps = [(0.0, 1.0), *((float(event.epoch), event.macs / full) for event in record.events)]
        panels.append(Panel("MACs", steps, lambda value: percent(value, 0), 90, 0.0, stepped=True))
    return panels


def _tick(metric: str, value: float) -> str:
    return percent(value) if is_share(metric) else metric_value(metric, value)


def _series(record: RunRecord, name: str) -> list[tuple[float, float]]:
    pairs = [(entry.get("epoch"), entry.get(name)) for entry in record.history]
    return [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]


def _event_metric_name(record: RunRecord) -> str | None:
    names = [name for event in record.events for name in event.metrics_after if name in event.metrics_before]
    return choose_metric(list(dict.fromkeys(names)))


def as_option(value: object) -> str:
    """Return an option as a user would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_option(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(
            f"[{as_option(item)}]" if isinstance(item, list | tuple) else as_option(item) for item in value
        )
    return str(value)
