"""Pictures of a run and of a comparison, as matplotlib figures: for files, notebooks and papers.

Pure functions of records. Colours are those of the report; nothing of matplotlib's global state is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infoprune.errors import ConfigurationError
from infoprune.report.record import EventRecord, RunRecord
from infoprune.report.text import choose_metric, count, group_name, is_share, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from infoprune.compare import Compared

INK, SOFT, LINE, ACCENT, PALE, CUT = "#1c1e20", "#5c636a", "#e2e2dc", "#0b6e69", "#cbe2de", "#b0500a"
SERIES = (ACCENT, CUT, "#3f5fa8", "#8a3f7c", "#6b7a1e", "#9a7b1c", "#5b4a9c", "#a33b3b", "#2b7a9b", "#5c636a")


def figure(width: float = 8.0, height: float = 4.0) -> Figure:
    """Start an empty figure in the report's style.

    Raises:
        ConfigurationError: matplotlib is not installed; says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("pictures need matplotlib: pip install 'infoprune[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def axes(made: Figure, *position: Any, title: str = "") -> Axes:
    """Return axes in the report's style: few lines, soft ticks, the title at the left."""
    made_axes: Axes = made.add_subplot(*position)
    made_axes.spines[["top", "right"]].set_visible(False)
    made_axes.spines[["left", "bottom"]].set_color(LINE)
    made_axes.tick_params(colors=SOFT, labelsize=8, length=0)
    made_axes.set_axisbelow(True)
    if title:
        made_axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    return made_axes


def widths(record: RunRecord) -> Figure:
    """Draw the filters of every layer: those left in front of those before.

    Args:
        record: the record of the run.
    """
    rows = record.layers[::-1]
    made = figure(7.0, 1.0 + 0.19 * len(rows))
    ax = axes(made, title="Filters that stayed")
    names = [row.name for row in rows]
    ax.barh(names, [row.channels_before for row in rows], color=PALE, height=0.72)
    ax.barh(names, [row.channels_after for row in rows], color=ACCENT, height=0.72)
    for place, row in enumerate(rows):
        if row.channels_after != row.channels_before:
            ax.text(row.channels_before, place, f"  {row.channels_after}", va="center", fontsize=7, color=SOFT)
    ax.tick_params(axis="y", labelsize=7)
    ax.margins(y=0.01)
    ax.set_xlabel("filters", color=SOFT, fontsize=8)
    return made


def scores(event: EventRecord, most: int = 24) -> Figure:
    """Draw the scores of each group in ascending order, with the cut; of very many groups every n-th.

    Args:
        event: the event.
        most: the most groups to draw.
    """
    if not event.scores:
        raise ConfigurationError("this event has no scores to draw")
    made, each = _grid(event.scores, most, f"Scores by {event.criterion}: pale went, strong stayed")
    for name, ax in each.items():
        values = np.sort(event.scores[name])
        gone = len(values) - len(event.kept.get(name, values))
        ax.bar(np.arange(len(values)), values, width=1.0, color=[PALE] * gone + [ACCENT] * (len(values) - gone))
        if gone:
            ax.axvline(gone - 0.5, color=CUT, linewidth=1)
        ax.set_xticks([])
    return made


def curves(event: EventRecord, most: int = 24) -> Figure:
    """Draw what cutting each channel group alone costs over the units that stay, and the width that was chosen.

    Args:
        event: the event.
        most: the most groups to draw.
    """
    if not event.curves:
        raise ConfigurationError("this event measured no loss curves: they come from the allocation information_loss")
    made, each = _grid(event.curves, most, "Loss of each group cut alone (root scale), over the units that stay")
    highest = max(max(event.curves[name].values()) for name in each)
    for name, ax in each.items():
        points = sorted((int(width), loss) for width, loss in event.curves[name].items())
        ax.plot(
            [width for width, _ in points], [loss**0.5 for _, loss in points], color=ACCENT, marker=".", linewidth=1
        )
        ax.axvline(len(event.kept.get(name, ())), color=CUT, linewidth=1)
        ax.set_ylim(-0.02 * highest**0.5, 1.05 * highest**0.5 or 1.0)
        ax.set_xlim(0, points[-1][0] * 1.02)
    return made


def _grid(groups: Iterable[str], most: int, title: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with small axes for each group, six in a line; of more than ``most`` groups for every n-th."""
    names = list(groups)
    names = [names[round(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]
    columns = min(6, len(names))
    lines = -(-len(names) // columns)
    made = figure(1.7 * columns + 0.4, 1.25 * lines + 0.5)
    made.suptitle(title, x=0.01, ha="left", fontsize=10)
    each = {name: axes(made, lines, columns, number) for number, name in enumerate(names, 1)}
    for name, ax in each.items():
        ax.set_title(group_name(name), fontsize=7, loc="left", color=SOFT)
        ax.set_yticks([])
    return made, each


def heat_map(record: RunRecord) -> Figure:
    """Draw the share of each layer's filters that is left after each event: layers down, events across.

    Args:
        record: the record of the run.
    """
    if not record.events:
        raise ConfigurationError("this run had no pruning event to draw")
    names = [row.name for row in record.layers]
    first = {row.name: row.channels_before for row in record.layers}
    after = [{row.name: row.channels_after for row in event.layers} for event in record.events]
    left = np.array([[1.0, *(event.get(name, first[name]) / first[name] for event in after)] for name in names])
    made = figure(2.6 + 0.75 * left.shape[1], 1.0 + 0.19 * len(names))
    ax = axes(made, title="Share of the filters that is left")
    from matplotlib.colors import LinearSegmentedColormap

    image = ax.imshow(left, aspect="auto", vmin=0, vmax=1, cmap=LinearSegmentedColormap.from_list("", ["#fff", ACCENT]))
    ax.set_xticks(range(left.shape[1]), ["before", *(_when(event) for event in record.events)])
    ax.set_yticks(range(len(names)), names, fontsize=7)
    for (row, column), share in np.ndenumerate(left):
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5,
                color="white" if share > 0.6 else INK)  # fmt: skip
    made.colorbar(image, ax=ax, shrink=0.5, format=lambda share, _: percent(share, 0)).ax.tick_params(labelsize=7)
    return made


def along(record: RunRecord) -> Figure:
    """Draw the chosen metric and the MACs over the epochs, with the pruning events.

    Args:
        record: the record of the run.
    """
    names = list(dict.fromkeys(n for entry in record.history for n in entry if n not in ("epoch", "macs")))
    metric = choose_metric(names)
    if metric is None or not record.events:
        raise ConfigurationError("this run has no epochs with a metric to draw: it was pruned without training")
    made = figure(8.0, 4.2)
    upper = axes(made, 3, 1, (1, 2), title=metric)
    # The validation of an epoch takes place at its end, a pruning event at its start.
    pairs = [(entry.get("epoch"), entry.get(metric)) for entry in record.history]
    points = [(epoch + 1, value) for epoch, value in pairs if epoch is not None and value is not None]
    upper.plot(*zip(*points, strict=True), color=ACCENT, marker=".")
    if is_share(metric):
        upper.yaxis.set_major_formatter(lambda value, _: percent(value))
    lower = axes(made, 3, 1, 3, title="MACs")
    end = max([float(event.epoch) for event in record.events] + [epoch for epoch, _ in points])
    steps = [(0.0, record.before.macs), *((float(event.epoch), event.macs) for event in record.events)]
    lower.step([*(x for x, _ in steps), end], [*(y for _, y in steps), steps[-1][1]], where="post", color=ACCENT)
    lower.set_ylim(0, 1.08 * record.before.macs)
    lower.yaxis.set_major_formatter(lambda value, _: count(value))
    lower.set_xlabel("epochs trained", color=SOFT, fontsize=8)
    for ax in (upper, lower):
        ax.set_xlim(0, end * 1.01)
        ax.locator_params(axis="x", integer=True)
        ax.grid(axis="y", color=LINE, linewidth=0.6)
        for event in record.events:
            ax.axvline(event.epoch, color=CUT, linewidth=1, linestyle=(0, (3, 2)))
    return made


def pareto(rows: Sequence[Compared], kind: str = "macs") -> Figure:
    """Draw what each criterion keeps at each budget: the figure that counts over what is left of the cost.

    Args:
        rows: results of `infoprune.compare`.
        kind: what the budgets are of, ``"macs"`` or ``"params"``.
    """
    original, measured = rows[0], rows[1:]
    name = next(iter(original.figures))
    made = figure(7.5, 4.5)
    ax = axes(made, title=f"{name} over what is left of the {'MACs' if kind == 'macs' else 'parameters'}")
    for number, criterion in enumerate(dict.fromkeys(row.criterion for row in measured)):
        points = sorted((getattr(row, kind), row.figures[name]) for row in measured if row.criterion == criterion)
        style: dict[str, Any] = {
            "color": SERIES[number % len(SERIES)],
            "marker": "o",
            "markersize": 4.5,
            "linewidth": 1.4,
        }
        ax.plot(*zip(*points, strict=True), label=criterion, **style)
    ax.margins(y=0.08)
    ax.axhline(original.figures[name], color=SOFT, linewidth=0.8, linestyle=(0, (3, 2)))
    ax.text(1.0, original.figures[name], "unpruned ", ha="right", va="bottom", fontsize=7, color=SOFT,
            transform=ax.get_yaxis_transform())  # fmt: skip
    ax.locator_params(steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter(lambda value, _: percent(value, 0))
    if is_share(name):
        ax.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    ax.grid(color=LINE, linewidth=0.6)
    ax.legend(frameon=False, fontsize=8)
    return made


def of_run(record: RunRecord) -> dict[str, Figure]:
    """Draw all pictures that a run's record allows, by name.

    Args:
        record: the record of the run.
    """
    made = {"widths": widths(record)}
    if record.events:
        made["heat_map"] = heat_map(record)
        made |= {f"scores_{e.index + 1}": scores(e) for e in record.events if e.scores}
        made |= {f"curves_{e.index + 1}": curves(e) for e in record.events if e.curves}
        if record.history and record.events[-1].epoch >= 0:
            made["along"] = along(record)
    return made


def _when(event: EventRecord) -> str:
    return "after" if event.epoch < 0 else f"epoch {event.epoch}"
