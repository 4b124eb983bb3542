"""The report of a run as one self-contained HTML page: no scripts, no network; light, dark, on paper, on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from infoprune.report.coupling import places, shortened
from infoprune.report.record import EventRecord, LayerRow, RunRecord
from infoprune.report.svg import Panel, run_chart, score_curve
from infoprune.report.text import (
    change,
    choose_metric,
    count,
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
    sections = [
        ("result", "Before and after", _result(record)),
        ("notes", "Before you trust the numbers", _warnings(record)),
        ("layers", "Widths, layer by layer", _layers(record)),
        ("scores", "Scores and where they were cut", _scores(record)),
        ("details", "What the layers hold", _details(record)),
        ("run", "Along the run", _run(record)),
        ("coupling", "What lives and dies together", _coupling(record)),
        ("frozen", "What was left alone, and why", _frozen(record)),
        ("load", "Load the pruned model", _load(record)),
        ("reproduce", "Do it again", _reproduce(record)),
    ]
    filled = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{anchor}</a>' for anchor, _, _ in filled)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>' for anchor, title, body in filled
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(_headline(record))} · infoprune</title>'
        f"<style>{_css()}</style></head><body><main>"
        f"<header>{_header(record)}</header><nav>{links}</nav>{bodies}</main></body></html>\n"
    )


@cache
def _css() -> str:
    return files("infoprune.report").joinpath("report.css").read_text(encoding="utf-8")


def _headline(record: RunRecord) -> str:
    if not record.before.macs:
        return record.model
    return f"{record.model} at {percent(record.after.macs / record.before.macs, 0)} of its MACs"


def _header(record: RunRecord) -> str:
    facts = [record.created[:16].replace("T", " "), record.device, f"infoprune {record.version}"]
    line = " · ".join(escape(fact) for fact in facts if fact)
    sentences = " ".join(_unbroken(escape(sentence)) for sentence in summary(record))
    tiles = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(shift)}</dd></div>"
        for what, _, _, shift in total_rows(record)
        if shift and (what in ("parameters", "MACs", "latency") or what == record.metric)
    )
    return (
        f'<p class="kicker">{line}</p><h1>{escape(_headline(record))}</h1>'
        f'<p class="lede">{sentences}</p><dl>{tiles}</dl>'
    )


def _unbroken(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=%|points|[kMGT]\b|[mµ]?s\b)", "&nbsp;", text)


def _result(record: RunRecord) -> str:
    rows = (
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{_with_spread(text)}</td>" for text in row[1:])}</tr>'
        for row in total_rows(record)
    )
    note = (
        '<p class="note">Before: measured just before the first pruning event. After: at the end of the run. MACs are '
        "multiply-accumulates of one example; latency is the median of one forward pass on the example input, ± the "
        "distance between the quartiles.</p>"
    )
    return _table(["", "before", "after", "change"], rows) + note


def _with_spread(text: str) -> str:
    """Mark up the spread of a measurement, which a phone's width leaves out."""
    value, plus_minus, spread = text.partition(" ± ")
    return escape(value) + (f'<span class="spread"> ± {escape(spread)}</span>' if plus_minus else "")


def _layers(record: RunRecord) -> str:
    if not record.layers:
        return ""
    widest = max(row.channels_before for row in record.layers)
    columns = ["layer", "filters", "", "parameters", "MACs", "change"]
    legend = (
        "<p>The strong part of each bar is what stayed, the pale part what went; the change is that of the MACs.</p>"
    )
    return legend + _table(columns, (_layer_row(row, widest) for row in record.layers), "widths")


def _layer_row(row: LayerRow, widest: int) -> str:
    outer, inner = 100 * row.channels_before / widest, 100 * row.channels_after / row.channels_before
    bar = f'<span class="bar" style="width:{outer:.2f}%"><span style="width:{inner:.2f}%"></span></span>'
    shift = change(row.macs_before, row.macs_after) if row.macs_after != row.macs_before else ""
    return (
        f'<tr><th scope="row"><code>{escape(row.name)}</code></th><td class="bars">{bar}</td>'
        f"<td>{_pair(str(row.channels_before), str(row.channels_after))}</td>"
        f"<td>{_pair(count(row.params_before), count(row.params_after))}</td>"
        f"<td>{_pair(count(row.macs_before), count(row.macs_after))}</td><td>{escape(shift)}</td></tr>"
    )


def _scores(record: RunRecord) -> str:
    shown = [event for event in record.events if event.scores]
    if not shown:
        return ""
    intro = (
        "<p>Each picture is one channel group: its units in order of their score. What lies left of the line went, "
        "what lies right of it stayed.</p>"
    )
    return intro + "".join(_event_scores(event, event is shown[-1]) for event in shown)


def _event_scores(event: EventRecord, opened: bool) -> str:
    figures = "".join(_score_figure(group, scores, event) for group, scores in event.scores.items() if scores)
    title = f"Event {event.index + 1}, {event.when}, {event.criterion}: {count(event.macs)} MACs left"
    state = " open" if opened else ""
    return f'<details{state}><summary>{escape(title)}</summary><div class="grid">{figures}</div></details>'


def _score_figure(group: str, scores: list[float], event: EventRecord) -> str:
    kept = len(event.kept.get(group, scores))
    return (
        f"<figure>{score_curve(scores, len(scores) - kept)}<figcaption><code>{escape(group)}</code>"
        f"<span>{kept} of {len(scores)} stay</span><span>{min(scores):.3g} … {max(scores):.3g}</span>"
        "</figcaption></figure>"
    )


def _details(record: RunRecord) -> str:
    event = next((event for event in reversed(record.events) if event.details), None)
    if event is None:
        return ""
    columns = list(dict.fromkeys(name for figures in event.details.values() for name in figures))
    rows = (
        f'<tr><th scope="row"><code>{escape(layer)}</code></th>'
        + "".join(f"<td>{figures[name]:.4g}</td>" if name in figures else "<td></td>" for name in columns)
        + "</tr>"
        for layer, figures in event.details.items()
    )
    return f"<p>What {escape(event.criterion)} measured at event {event.index + 1}.</p>" + _table(
        ["layer", *columns], rows
    )


def _run(record: RunRecord) -> str:
    panels = _run_panels(record)
    if not panels or all(event.epoch < 0 for event in record.events):
        return ""
    events = [float(event.epoch) for event in record.events]
    wide, narrow = run_chart(panels, events, 720), run_chart(panels, events, 340)
    steps = (
        f'<tr><th scope="row">{event.index + 1}</th><td>{event.epoch}</td><td>{event.global_step:,}</td>'
        f"<td>{count(event.macs)}</td><td>{count(event.params)}</td>{_event_metric(record, event)}</tr>"
        for event in record.events
    )
    name = _event_metric_name(record)
    columns = ["event", "epoch", "step", "MACs", "parameters", *([f"{name} before", "and after"] if name else [])]
    table = _table(columns, steps, "events")
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>{table}'


def _run_panels(record: RunRecord) -> list[Panel]:
    panels = []
    names = [name for entry in record.history for name in entry if name not in ("epoch", "macs")]
    metric = choose_metric(list(dict.fromkeys(names)))
    if metric is not None:
        # The validation of an epoch takes place at its end, a pruning event at its start.
        points = [(epoch + 1.0, value) for epoch, value in _series(record, metric)]
        first = record.events[0].epoch if record.events else 0
        floor = min((y for x, y in points if x >= first), default=None)
        if points:
            panels.append(Panel(metric, points, lambda value: _tick(metric, value), 170, floor))
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


def _event_metric(record: RunRecord, event: EventRecord) -> str:
    name = _event_metric_name(record)
    if name is None:
        return ""
    return "".join(
        f"<td>{escape(metric_value(name, metrics[name])) if name in metrics else ''}</td>"
        for metrics in (event.metrics_before, event.metrics_after)
    )


def _coupling(record: RunRecord) -> str:
    items = "".join(
        f'<details><summary><code>{escape(group)}</code><span class="aside">{places(text)} places</span></summary>'
        f"<pre>{escape(shortened(text))}</pre></details>"
        for group, text in record.coupling.items()
    )
    intro = (
        "<p>A filter cannot go alone: its normalisation, the layers that read it and every layer that is added to it "
        "lose the same channel. Open a group to see what it ties together.</p>"
    )
    return intro + items if items else ""


def _frozen(record: RunRecord) -> str:
    rows = (
        f'<tr><th scope="row"><code>{escape(group)}</code></th><td class="prose">{escape(reason)}</td></tr>'
        for group, reason in record.frozen.items()
    )
    return _table(["channel group", "reason"], rows)


def _warnings(record: RunRecord) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in record.warnings)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _load(record: RunRecord) -> str:
    pruned, checkpoint = record.files.get("pruned model"), record.files.get("checkpoint")
    parts = []
    if pruned:
        code = (
            f"import infoprune\n\nmodel = {record.model}(...)  # as it was built before pruning\n"
            f'infoprune.load("{pruned}", model)   # shrinks it, then loads the weights'
        )
        parts.append(f"<p>In plain PyTorch, from the run folder:</p><pre>{escape(code)}</pre>")
    if checkpoint and record.config:
        command = f"infoprune test --config {record.files.get('config', 'config.yaml')} --ckpt_path {checkpoint}"
        parts.append(f"<p>Or in Lightning:</p><pre>{escape(command)}</pre>")
    if record.files:
        rows = (
            f'<tr><th scope="row">{escape(label)}</th><td class="prose"><code>{escape(path)}</code></td></tr>'
            for label, path in record.files.items()
        )
        parts.append(_table(["in the run folder", ""], rows))
    return "".join(parts)


def _reproduce(record: RunRecord) -> str:
    facts = {
        "command": record.command,
        "seed": "" if record.seed is None else str(record.seed),
        "device": record.device,
        "versions": joined([f"{name} {version}" for name, version in record.versions.items()]),
        **{name.replace("_", " "): _option(value) for name, value in record.options.items()},
    }
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td class="prose">{escape(value)}</td></tr>'
        for name, value in facts.items()
        if value
    )
    table = _table(["", ""], rows)
    config = (
        f"<details><summary>The resolved configuration</summary><pre>{escape(record.config)}</pre></details>"
        if record.config
        else ""
    )
    return table + config


def _option(value: object) -> str:
    """Return an option as a person writes it; empty for one that says nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_option(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"[{_option(item)}]" if isinstance(item, list | tuple) else _option(item) for item in value)
    return str(value)


def _table(columns: list[str], rows: Iterable[str], name: str = "") -> str:
    body = "".join(rows)
    if not body:
        return ""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    attribute = f' class="{name}"' if name else ""
    return f'<div class="scroll"><table{attribute}>{head}<tbody>{body}</tbody></table></div>'


def _pair(before: str, after: str) -> str:
    if before == after:
        return escape(before)
    return f'<span class="was">{escape(before)} →</span> {escape(after)}'
