"""Meeting a budget: bisection along an allocation's path, then moves of single units.

A path maps a pressure in [0, 1] to widths that only shrink as the pressure grows. Every step below looks for the two
neighbouring states around the target and never at the target alone, so a larger budget never gets a cheaper model.
With a measured time that holds as far as the clock is steady and the number of questions allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import permutations

from infoprune.allocation.grid import Grid

Widths = dict[str, int]
Path = Callable[[float], Widths]
Measure = Callable[[Mapping[str, int]], float]

BISECTIONS = 40
TIMED_BISECTIONS = 12
TIMED_QUESTIONS = 40
# What is left of a budget of time is not worth more questions below this share of it.
TIMED_CLOSE = 5e-3
ROUNDS = 6
# A bracket this narrow (as a share of the original cost) is not worth another round.
CLOSE = 5e-4
# How far single units may take a group from the path, as a share of its units (one step at least): the allocation
# decides on the widths, and what it cannot meet exactly is left unspent.
STRAY = 0.1
TIMED_STRAY = 0.25  # one unit may cross the edge of a block of channels that a device runs at once


def solve(path: Path, grids: Mapping[str, Grid], measure: Measure, target: float, timed: bool = False) -> Widths:
    """The widths along ``path``, give or take single units, that cost the most within ``target``.

    Args:
        path: Widths at a pressure in [0, 1]; pressure 1 must cost at most ``target``.
        grids: Group name -> the widths open to it.
        measure: Share of the original cost that widths cost; smaller widths must not cost more.
        target: Share that may be spent.
        timed: The cost is a measured time: every question is expensive and the last digits are noise, so a dozen
            points of the path are tried, and then single steps by halving, until what is left is not worth more.
    """
    low, high = path(1.0), path(0.0)
    if measure(high) <= target:
        return high
    low, high = _bisect(path, measure, target, TIMED_BISECTIONS if timed else BISECTIONS)
    stray = TIMED_STRAY if timed else STRAY
    near = {name: _near(grid, low[name], high[name], stray) for name, grid in grids.items()}
    if timed:
        return _spend(low, list(_ups(low, high, grids, near)), grids, measure, target)
    low, high = _walk(low, high, grids, measure, target)
    for _ in range(ROUNDS):
        if measure(high) - measure(low) <= CLOSE:
            break
        closer = _narrow(low, high, _inside(near, _steps(low, high, grids)), measure, target)
        if closer == (low, high):
            closer = _narrow(low, high, _inside(near, _swaps(low, high, grids)), measure, target)
        if closer == (low, high):
            break
        low, high = closer
    return low


def _near(grid: Grid, low: int, high: int, stray: float) -> range:
    """The widths that a group may take when ``low`` and ``high`` are those of the path around the target."""
    far = max(grid.step, int(stray * (grid.original or grid.size)))
    return range(low - far, max(high, low + far) + 1)


def _inside(near: Mapping[str, range], states: Iterable[Widths]) -> Iterator[Widths]:
    return (state for state in states if all(width in near[name] for name, width in state.items()))


def _bisect(path: Path, measure: Measure, target: float, steps: int) -> tuple[Widths, Widths]:
    """Neighbouring points of the path, the first within the target, the second beyond it."""
    enough, little = 1.0, 0.0
    low, high = path(enough), path(little)
    for _ in range(steps):
        middle = (enough + little) / 2
        widths = path(middle)
        if widths == low:
            enough = middle
        elif widths == high:
            little = middle
        elif measure(widths) <= target:
            enough, low = middle, widths
        else:
            little, high = middle, widths
    return low, high


def _walk(
    low: Widths, high: Widths, grids: Mapping[str, Grid], measure: Measure, target: float
) -> tuple[Widths, Widths]:
    """Where several groups change at one pressure: change them one by one, in order, until the target is crossed."""
    below = low
    for above in _one_by_one(low, high, grids):
        if measure(above) > target:
            return below, above
        below = above
    return below, high


def _ups(low: Widths, high: Widths, grids: Mapping[str, Grid], near: Mapping[str, range]) -> Iterator[str]:
    """The groups to take a step up, one after the other: from ``low`` to ``high``, then all in turn while near."""
    for name, grid in grids.items():
        yield from [name] * _count(grid, low[name], high[name])
    left = {name: _count(grid, high[name], near[name][-1]) for name, grid in grids.items()}
    for turn in range(max(left.values(), default=0)):
        yield from (name for name, steps in left.items() if steps > turn)


def _count(grid: Grid, width: int, most: int) -> int:
    """How many steps lead up from a width without passing another."""
    steps = 0
    while width < (width := grid.up(width)) <= most:
        steps += 1
    return steps


def _spend(state: Widths, ups: list[str], grids: Mapping[str, Grid], measure: Measure, target: float) -> Widths:
    """Take steps up, in order, as long as the target allows; one that is too long for it is left out."""
    asked = 0
    while ups and asked < TIMED_QUESTIONS and target - measure(state) > TIMED_CLOSE * target:
        states = [state]
        for name in ups:
            states.append({**states[-1], name: grids[name].up(states[-1][name])})
        enough, beyond = 0, len(states)
        while beyond - enough > 1:
            asked, middle = asked + 1, (enough + beyond) // 2
            enough, beyond = (middle, beyond) if measure(states[middle]) <= target else (enough, middle)
        state, ups = states[enough], ups[enough + 1 :]
    return state


def _one_by_one(low: Widths, high: Widths, grids: Mapping[str, Grid]) -> Iterator[Widths]:
    """The states behind ``low`` on the way to ``high``, one step of one group at a time."""
    state = low
    for name in low:
        while state[name] < high[name]:
            state = {**state, name: grids[name].up(state[name])}
            yield state


def _narrow(
    low: Widths, high: Widths, states: Iterable[Widths], measure: Measure, target: float
) -> tuple[Widths, Widths]:
    """The closest two around the target among ``low``, ``high`` and the states between them."""
    below, above = (measure(low), low), (measure(high), high)
    for state in states:
        cost = measure(state)
        if below[0] < cost <= target:
            below = (cost, state)
        elif target < cost < above[0]:
            above = (cost, state)
    return below[1], above[1]


def _steps(low: Widths, high: Widths, grids: Mapping[str, Grid]) -> Iterator[Widths]:
    """The states one step above ``low`` or one step below ``high``."""
    for name, grid in grids.items():
        yield {**low, name: grid.up(low[name])}
        yield {**high, name: grid.down(high[name])}


def _swaps(low: Widths, high: Widths, grids: Mapping[str, Grid]) -> Iterator[Widths]:
    """The states that are one step above in one group and one step below in another."""
    for state in (low, high):
        for more, less in permutations(grids, 2):
            yield {**state, more: grids[more].up(state[more]), less: grids[less].down(state[less])}
