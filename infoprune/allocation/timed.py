"""Meeting a budget of measured time: every question is expensive, and the last digits of an answer are noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infoprune.allocation.grid import Grid
from infoprune.allocation.solve import TOLERANCE, Measure, Path, Widths, bisect, near, one_by_one

BISECTIONS = 8
QUESTIONS = 40
CONFIRMATIONS = 8
TRIALS = 4
# What is left of a budget is not worth more questions below this share of it.
CLOSE = 7e-3
# One unit may cross the edge of a block of channels that a device runs at once.
STRAY = 0.25
# How much of the path lies open below the first guess, should that have been timed too well.
MARGIN = 0.05


def solve_timed(path: Path, grids: Mapping[str, Grid], measure: Measure, confirm: Measure, target: float) -> Widths:
    """The widths along ``path``, give or take single units, that take the most time within ``target``.

    A larger budget gets a larger model as far as the clock is steady.

    Args:
        path: Widths at a pressure in [0, 1]; pressure 1 must cost at most ``target``.
        grids: Group name -> the widths open to it.
        measure: Share of the original time that widths take, as a short measurement tells.
        confirm: The same, as a long one tells.
        target: Share that may be spent.
    """
    if measure(path(0.0)) <= target:
        return path(0.0)
    found: list[Widths] = []
    for _ in range(TRIALS):  # each knows more than the one before
        states, place = _spent(path, grids, measure, target)
        settled = _settled(states, place, grids, measure, confirm, target)
        found += [settled] if settled else []
        if settled and measure(settled) >= (1 - TOLERANCE) * target:
            break
    best = max((widths for widths in found if measure(widths) <= target), key=measure, default=None)
    return best or path(bisect(path, confirm, target, BISECTIONS)[0])  # where short measurements told nothing


def _spent(path: Path, grids: Mapping[str, Grid], measure: Measure, target: float) -> tuple[list[Widths], int]:
    """States that grow by single units, and the place among them where little of the target is left.

    From a point of the path on, steps are taken by halving; one that is too long for what is left is left out.
    """

    def little_left() -> bool:
        return target - measure(states[place]) <= CLOSE * target

    enough, little = bisect(path, measure, target, BISECTIONS)
    below, low, high = path(min(enough + MARGIN, 1.0)), path(enough), path(little)
    states = [below, *one_by_one(below, low, grids)]
    ups = list(_ups(low, high, grids))
    place, asked = len(states) - 1, 0
    while True:
        first = place
        del states[first + 1 :]
        for name in ups:
            states.append({**states[-1], name: grids[name].up(states[-1][name])})
        beyond = len(states)
        while beyond - place > 1 and asked < QUESTIONS and not little_left():
            asked, middle = asked + 1, (place + beyond) // 2
            place, beyond = (middle, beyond) if measure(states[middle]) <= target else (place, middle)
        if beyond == len(states) or asked >= QUESTIONS or little_left():
            return states, place
        del ups[: place - first + 1]


def _settled(
    states: list[Widths], place: int, grids: Mapping[str, Grid], measure: Measure, confirm: Measure, target: float
) -> Widths | None:
    """The state that meets the target in a long measurement; where that tells otherwise, one as far up or down.

    Of many states, the one that seems to meet a target best is one that happened to be timed well or badly. A step that
    leads from too little to too much is left out.
    """
    wanted = (1 - TOLERANCE / 2) * target
    low, high = -1, len(states)
    seen: list[Widths] = []
    for _ in range(CONFIRMATIONS):
        share = confirm(states[place])
        seen.append(states[place])
        if (1 - TOLERANCE) * target <= share <= target:
            break
        low, high = (place, high) if share <= target else (low, place)
        if high - low <= 1 and low >= 0 and high < len(states):
            _leave_out(states, high, grids)
            high = len(states)
        if high - low <= 1:
            break
        place = _between(states, low, high, measure, wanted)
    return max((state for state in seen if measure(state) <= target), key=measure, default=None)


def _leave_out(states: list[Widths], place: int, grids: Mapping[str, Grid]) -> None:
    """The step that leads to a state is too long: go on without it."""
    name = next(name for name, width in states[place].items() if width != states[place - 1][name])
    states[place:] = [{**state, name: grids[name].down(state[name])} for state in states[place + 1 :]]


def _between(states: list[Widths], low: int, high: int, measure: Measure, wanted: float) -> int:
    """Where the wanted share would be if it grew evenly from one place to another, neither of these."""
    first, last = max(low, 0), min(high, len(states) - 1)
    less, more = measure(states[first]), measure(states[last])
    share = (wanted - less) / (more - less) if more > less else 0.5
    return min(max(first + round(share * (last - first)), low + 1), high - 1)


def _ups(low: Widths, high: Widths, grids: Mapping[str, Grid]) -> Iterator[str]:
    """The groups to take a step up, one after the other: from ``low`` to ``high``, then all in turn while near."""
    left = {}
    for name, grid in grids.items():
        yield from [name] * _count(grid, low[name], high[name])
        left[name] = _count(grid, high[name], near(grid, low[name], high[name], STRAY)[-1])
    for turn in range(max(left.values(), default=0)):
        yield from (name for name, steps in left.items() if steps > turn)


def _count(grid: Grid, width: int, most: int) -> int:
    """How many steps lead up from a width without passing another."""
    steps = 0
    while width < (width := grid.up(width)) <= most:
        steps += 1
    return steps
