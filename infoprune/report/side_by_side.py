"""Show two runs on one self-contained HTML page: costs, options, and each layer's width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from infoprune.report.html import POLICY, as_option, environment, run_charts, style
from infoprune.report.record import LayerRow, RunRecord, Totals
from infoprune.report.text import change, count, filters_of, metric_change, metric_value, percent, seconds

Cells = tuple[str, ...]


def render_pair(first: RunRecord, second: RunRecord, first_name: str, second_name: str) -> str:
    """Return two runs side by side as one HTML page.

    Args:
        first: a run.
        second: another, of any model.
        first_name: what to call the first, such as its folder.
        second_name: what to call the second.

    Returns:
        The whole page; every text of the records is escaped.
    """
    page = environment().get_template("side_by_side.html")
    return page.render(
        policy=POLICY,
        css=style(),
        names=(first_name, second_name),
        titles=[f"{one.model}, {one.criterion}" for one in (first, second)],
        results=_results(first, second),
        options=_options(first, second),
        layers=_layers(first, second),
        charts=[run_charts(one) for one in (first, second)],
        same_original=first.before.macs == second.before.macs and first.before.params == second.before.params,
    )


def _results(first: RunRecord, second: RunRecord) -> list[Cells]:
    """Return rows of what is left of each model: what, first, second, change from the first to the second."""
    rows = [
        _left("filters", *(filters_of(one.layers, one.frozen) for one in (first, second))),
        _left("parameters", *((one.before.params, one.after.params) for one in (first, second))),
        _left("MACs", *((one.before.macs, one.after.macs) for one in (first, second))),
    ]
    if first.after.latency_s is not None and second.after.latency_s is not None:
        times = [one.after.latency_s or 0.0 for one in (first, second)]
        rows.append(("latency", *(_latency(one.after) for one in (first, second)), change(*times)))
    for name in sorted(first.after.metrics.keys() & second.after.metrics.keys()):
        values = [one.after.metrics[name] for one in (first, second)]
        rows.append((name, *(metric_value(name, value) for value in values), metric_change(name, *values)))
    return rows


def _left(what: str, first: tuple[int, int], second: tuple[int, int]) -> Cells:
    cells = [
        f"{count(after)} ({percent(after / before)})" if before else count(after) for before, after in (first, second)
    ]
    return (what, *cells, change(first[1], second[1]))


def _latency(totals: Totals) -> str:
    spread = f" ± {seconds(totals.latency_spread_s)}" if totals.latency_spread_s is not None else ""
    return f"{seconds(totals.latency_s or 0.0)}{spread}"


def _options(first: RunRecord, second: RunRecord) -> list[Cells]:
    """Return the options in which the runs differ: those of pruning, then those of the whole configuration."""
    rows = _differing(*({**_facts(one), **one.options} for one in (first, second)))
    rows = [(name.replace("_", " "), *cells) for name, *cells in rows]
    if first.config and second.config:
        rows += _differing(*(_settings(yaml.safe_load(one.config)) for one in (first, second)))
    return rows


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Cells]:
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return [(name, *(as_option(side[name]) if name in side else "" for side in (first, second))) for name in names]


def _settings(config: Any, name: str = "") -> dict[str, Any]:
    """Return the values of a configuration by dotted name, without those that other rows show or that name places.

    >>> callbacks = [{"class_path": "infoprune.callbacks.Distillation", "init_args": {"weight": 0.5}}]
    >>> _settings({"trainer": {"max_epochs": 3, "logger": True, "callbacks": callbacks}})
    {'trainer.max_epochs': 3, 'trainer.callbacks': ['Distillation']}
    """
    if name in ("seed_everything", "ckpt_path", "trainer.logger", "trainer.default_root_dir"):
        return {}
    if name == "trainer.callbacks":  # the options of FilterPruning have rows of their own
        several = config if isinstance(config, list) else [config] if config else []
        return {name: [one["class_path"].rpartition(".")[2] for one in several]}
    if not isinstance(config, dict):
        return {name: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _settings(value, f"{name}.{key}" if name else str(key))
    return found


def _facts(record: RunRecord) -> Mapping[str, Any]:
    seed = {} if record.seed is None else {"seed": record.seed}
    return {"model": record.model, "criterion": record.criterion, **seed, "device": record.device}


def _layers(first: RunRecord, second: RunRecord) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return each layer's name with, for both runs, its bar, the part that stayed in per cent, and the widths."""
    sides = [{row.name: row for row in one.layers} for one in (first, second)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return [(name, [_bar(side.get(name)) for side in sides]) for name in names]


def _bar(row: LayerRow | None) -> tuple[str, str, str]:
    if row is None:
        return "0", "0", "–"
    kept = 100 * row.channels_after / row.channels_before
    text = str(row.channels_before)
    return "100", f"{kept:.2f}", text if row.channels_after == row.channels_before else f"{text} → {row.channels_after}"
