"""The report's charts as small pure functions that return SVG text.

Colours come from CSS variables of the page: one drawing serves light, dark and print. The heat map stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]


def score_curve(scores: Sequence[float], removed: int, width: int = 168, height: int = 64) -> str:
    """Draw the scores of one channel group in ascending order, with the cut between what went and what stays.

    Args:
        scores: score of each unit, any order.
        removed: number of units that went, the lowest scores.
        width: of the drawing, in pixels.
        height: of the drawing, in pixels.

    Returns:
        An ``<svg>`` element; its ``<title>`` gives the figures that the picture shows.

    >>> score_curve([0.3, 0.1, 0.2], removed=1).startswith("<svg")
    True
    """
    ordered = sorted(scores)
    low, high = ordered[0], ordered[-1]
    bottom, top = height - 1.0, 3.0

    def place(rank: float, score: float) -> Point:
        level = (score - low) / (high - low) if high > low else 1.0
        # The lowest score still stands a little above the base line, so that its bar can be seen.
        return rank / len(ordered) * width, bottom - (0.08 + 0.92 * level) * (bottom - top)

    cut = removed / len(ordered) * width
    title = f"{len(ordered) - removed} of {len(ordered)} units stay; scores from {low:.4g} to {high:.4g}"
    parts = [
        _steps(ordered[:removed], 0, place, bottom, "gone"),
        _steps(ordered[removed:], removed, place, bottom, "kept"),
    ]
    if removed:
        parts.append(f'<line class="cut" x1="{cut:.1f}" x2="{cut:.1f}" y1="0" y2="{height}"/>')
    return (
        f'<svg class="scores" viewBox="0 0 {width} {height}" role="img" preserveAspectRatio="none">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def loss_curve(losses: Sequence[Point], kept: int, highest: float, width: int = 168, height: int = 64) -> str:
    """Draw what cutting one channel group alone costs, with a line at the width that was chosen.

    Args:
        losses: (units that stay, loss), any order; the widest is the whole group.
        kept: units that stay.
        highest: the largest loss of all groups; heights are square roots, since small changes cost their square.
        width: of the drawing, in pixels.
        height: of the drawing, in pixels.

    Returns:
        An ``<svg>`` element; its ``<title>`` gives the figures that the picture shows.

    >>> "8 of 16 units stay; 0.01 at 8, 0.04 at 4" in loss_curve([(16, 0), (8, 0.01), (4, 0.04)], 8, 1.0)
    True
    """
    points = sorted(losses, reverse=True)
    most = points[0][0]
    bottom, top = height - 1.0, 3.0

    def place(units: float, loss: float) -> str:
        level = math.sqrt(max(0.0, loss) / highest) if highest > 0 else 0.0
        return f"{units / most * width:.1f},{bottom - level * (bottom - top):.1f}"

    measured = ", ".join(f"{loss:.3g} at {units:g}" for units, loss in points[1:])
    line = f'<polyline class="line" points="{" ".join(place(*point) for point in points)}"/>'
    cut = f'<line class="cut" x1="{kept / most * width:.1f}" x2="{kept / most * width:.1f}" y1="0" y2="{height}"/>'
    return (
        f'<svg class="scores" viewBox="0 0 {width} {height}" role="img" preserveAspectRatio="none">'
        f"<title>{escape(f'{kept} of {most:g} units stay; {measured}')}</title>{line}{cut}</svg>"
    )


def heat_map(rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """Draw shares as a grid of shaded cells, with the figures in them; complete with its colours, for use on its own.

    Args:
        rows: names of the rows, top down.
        columns: names of the columns.
        shares: row by row, each in [0, 1].

    Returns:
        An ``<svg>`` element.

    >>> "75" in heat_map(["conv1"], ["before", "event 1"], [[1.0, 0.75]])
    True
    """
    left, top, cell, line = 16 + 7 * max(map(len, rows), default=0), 26, 64, 18
    width, height = left + cell * len(columns) + 8, top + line * len(rows) + 8
    parts = [
        f'<text x="{left + cell * (i + 0.5)}" y="{top - 9}" text-anchor="middle">{escape(name)}</text>'
        for i, name in enumerate(columns)
    ]
    for number, (name, values) in enumerate(zip(rows, shares, strict=True)):
        y = top + line * number
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        for i, share in enumerate(values):
            x, ink = left + cell * i, "#fff" if share > 0.6 else "#1c1e20"
            box = f'x="{x}" y="{y}" width="{cell - 1}" height="{line - 1}"'
            parts.append(
                f'<rect {box} fill="#0b6e69" fill-opacity="{share:.3f}"/>'
                f'<text x="{x + cell / 2}" y="{y + 13}" text-anchor="middle" fill="{ink}">{100 * share:.0f} %</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="#5c636a"><rect width="100%" height="100%" '
        f'fill="#fff"/>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Panel:
    """One strip of `run_chart`: a line over the epochs.

    Attributes:
        label: what the line shows.
        points: (epochs trained, value), ascending.
        show: turns a value into the text of a tick.
        height: of the strip, in pixels.
        floor: a value that the axis reaches down to, None to fit the points.
        stepped: whether the value holds until the next point.
        marks: (epochs trained, value) of single points beside the line: what was measured right after an event.
    """

    label: str
    points: Sequence[Point]
    show: Callable[[float], str]
    height: int
    floor: float | None = None
    stepped: bool = False
    marks: Sequence[Point] = ()


def run_chart(panels: Sequence[Panel], events: Sequence[float], width: int = 720) -> str:
    """Draw strips above one another over the same epochs, with a vertical line at each pruning event.

    Args:
        panels: the strips, top down; each has at least one point.
        events: epochs trained when each event took place.
        width: of the drawing, in pixels; text keeps its size.

    Returns:
        An ``<svg>`` element.
    """
    head, gap, foot = 16, 34, 28
    end = max([1.0, *events, *(x for panel in panels for x, _ in panel.points)])
    axis = _Axis(left=60, right=width - 12, end=end)
    parts: list[str] = []
    top = float(head)
    for panel in panels:
        parts += _panel(panel, axis, top + gap)
        top += gap + panel.height
    places = [axis(epoch) for epoch in events]
    roomy = all(b - a > 56 for a, b in pairwise(places))
    for number, x in enumerate(places, 1):
        parts.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{head}" y2="{top:.1f}"/>')
        text = f"event {number}" if roomy else str(number)
        parts.append(f'<text class="cut" x="{x:.1f}" y="{head - 5}" text-anchor="middle">{text}</text>')
    for epoch in _ticks(0, end, max(3, width // 110), whole=True):
        parts.append(f'<text x="{axis(epoch):.1f}" y="{top + 21:.1f}" text-anchor="middle">{epoch:g}</text>')
    parts.append(f'<text x="{axis.left - 12}" y="{top + 21:.1f}" text-anchor="end">epoch</text>')
    return f'<svg class="run" viewBox="0 0 {width} {top + foot:.0f}" role="img">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Axis:
    """Map epochs to horizontal positions."""

    left: float
    right: float
    end: float

    def __call__(self, epoch: float) -> float:
        return self.left + epoch / self.end * (self.right - self.left)


def _panel(panel: Panel, axis: _Axis, top: float) -> list[str]:
    low, high = _bounds(panel)

    def up(value: float) -> float:
        return top + panel.height * (1 - (value - low) / (high - low))

    parts = [f'<text class="label" x="{axis.left}" y="{top - 9:.1f}">{escape(panel.label)}</text>']
    for tick in _ticks(low, high, max(2, panel.height // 36)):
        y = up(tick)
        parts.append(f'<line class="rule" x1="{axis.left}" x2="{axis.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{axis.left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(panel.show(tick))}</text>')
    points = _held(panel.points, axis.end) if panel.stepped else panel.points
    line = " ".join(f"{axis(x):.1f},{up(y):.1f}" for x, y in points)
    marks = "" if panel.stepped else "".join(_dot(axis(x), up(y), panel.show(y), x) for x, y in panel.points)
    marks += "".join(_mark(axis(x), up(y), panel.show(y)) for x, y in panel.marks)
    parts.append(f'<g><polyline class="line" points="{line}"/>{marks}</g>')
    return parts


def _bounds(panel: Panel) -> Point:
    """Return the lowest and highest value of a strip's axis, with a margin around the points."""
    values = [y for _, y in (*panel.points, *panel.marks)]
    low, high = min(values) if panel.floor is None else min(panel.floor, *values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if low == 0 else low - margin), high + margin


def _held(points: Sequence[Point], end: float) -> list[Point]:
    """Return the corners of a line that holds each value until the next point.

    >>> _held([(0, 1.0), (2, 0.5)], end=4)
    [(0, 1.0), (2, 1.0), (2, 0.5), (4, 0.5)]
    """
    corners: list[Point] = []
    for (x, y), following in zip(points, [*(x for x, _ in points[1:]), end], strict=True):
        corners += [(x, y), (following, y)]
    return corners


def _dot(x: float, y: float, value: str, epoch: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{escape(value)} after epoch {epoch:g}</title></circle>'


def _steps(
    scores: Sequence[float], start: int, place: Callable[[float, float], Point], bottom: float, name: str
) -> str:
    """Return the area under neighbouring bars; if there are very many, only as many as can be distinguished."""
    if not scores:
        return ""
    stride = max(1, len(scores) // 120)
    ranks = [*range(0, len(scores), stride), len(scores)]
    path = [f"M{place(start, scores[0])[0]:.1f} {bottom:.1f}"]
    for rank, following in pairwise(ranks):
        x, y = place(start + rank, scores[rank])
        path.append(f"L{x:.1f} {y:.1f}H{place(start + following, scores[rank])[0]:.1f}")
    return f'<path class="{name}" d="{"".join(path)}V{bottom:.1f}Z"/>'


def _ticks(low: float, high: float, wanted: int, whole: bool = False) -> list[float]:
    """Return round numbers between two bounds, about as many as wanted.

    >>> _ticks(0, 12, 5, whole=True)
    [0, 2, 4, 6, 8, 10, 12]
    >>> _ticks(0.93, 0.99, 3)
    [0.94, 0.96, 0.98]
    """
    raw = (high - low) / max(1, wanted)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.75)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _mark(x: float, y: float, value: str) -> str:
    title = f"<title>{escape(value)} right after the cut</title>"
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
