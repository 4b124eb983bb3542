"""Meet a budget by bisection over the sparsity, then by moves of single units.

An allocation maps a sparsity in [0, 1] to widths that only shrink as the sparsity grows. Every step below looks for
the two neighbouring states around the target and never at the target alone, so a larger budget never gets a cheaper
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import permutations

from infoprune.allocation.grid import WidthGrid

Widths = dict[str, int]
WidthsAt = Callable[[float], Widths]
Measure = Callable[[Mapping[str, int]], float]

TOLERANCE = 0.01
"""A budget counts as met when at most this share of it is left unspent."""

BISECTIONS = 40
ROUNDS = 6
# A bracket this narrow (as a share of the original cost) is not worth another round.
CLOSE = 5e-4
# A clock cannot tell narrower ones apart.
CLOSE_IN_TIME = 4e-3
# How far steps of single units may move a group from the allocation's widths, as a share of its units (one step at
# least): the allocation decides on the widths, and a rest of the budget that they cannot meet is left unspent.
STRAY = 0.1


def solve(
    widths_at: WidthsAt,
    grids: Mapping[str, WidthGrid],
    measure: Measure,
    target: float,
    close: float = CLOSE,
    single_units: bool = True,
) -> Widths:
    """Return the widths near those of the allocation, give or take single units, that cost the most within ``target``.

    Args:
        widths_at: Widths at a sparsity in [0, 1]; sparsity 1 must cost at most ``target``.
        grids: Group name -> the widths open to it.
        measure: Share of the original cost that widths cost; smaller widths must not cost more.
        target: Share that may be spent.
        close: Share of the original cost that is not worth a further step.
        single_units: Whether single units may take a group from the allocation's widths.
    """
    if measure(widths_at(0.0)) <= target:
        return widths_at(0.0)
    enough, little = bisect(widths_at, measure, target, BISECTIONS)
    if not single_units:
        return widths_at(enough)
    low, high = widths_at(enough), widths_at(little)
    reach = {name: near(grid, low[name], high[name], STRAY) for name, grid in grids.items()}
    low, high = _walk(low, high, grids, measure, target)
    for _ in range(ROUNDS):
        if measure(high) - measure(low) <= close:
            break
        closer = _narrow(low, high, _inside(reach, _steps(low, high, grids)), measure, target)
        if closer == (low, high):
            closer = _narrow(low, high, _inside(reach, _swaps(low, high, grids)), measure, target)
        if closer == (low, high):
            break
        low, high = closer
    return low


def near(grid: WidthGrid, low: int, high: int, stray: float) -> range:
    """Return the widths that a group may take between those of the allocation around the target."""
    far = max(grid.step, int(stray * (grid.original or grid.size)))
    return range(low - far, max(high, low + far) + 1)


def _inside(reach: Mapping[str, range], states: Iterable[Widths]) -> Iterator[Widths]:
    return (state for state in states if all(width in reach[name] for name, width in state.items()))


def bisect(widths_at: WidthsAt, measure: Measure, target: float, steps: int) -> tuple[float, float]:
    """Return two neighbouring sparsities after ``steps`` halvings; the first meets the target.

    Args:
        widths_at: Sparsity in [0, 1] -> widths.
        measure: Widths -> cost, as a share of the original's.
        target: Share to keep.
        steps: Number of halvings.
    """
    enough, little = 1.0, 0.0
    low, high = widths_at(enough), widths_at(little)
    for _ in range(steps):
        middle = (enough + little) / 2
        widths = widths_at(middle)
        if widths == low:
            enough = middle
        elif widths == high:
            little = middle
        elif measure(widths) <= target:
            enough, low = middle, widths
        else:
            little, high = middle, widths
    return enough, little


def _walk(
    low: Widths, high: Widths, grids: Mapping[str, WidthGrid], measure: Measure, target: float
) -> tuple[Widths, Widths]:
    """Change groups one by one, in order, until the target is crossed, where several change at one sparsity."""
    below = low
    for above in one_by_one(low, high, grids):
        if measure(above) > target:
            return below, above
        below = above
    return below, high


def one_by_one(low: Widths, high: Widths, grids: Mapping[str, WidthGrid]) -> Iterator[Widths]:
    """Return the states behind ``low`` on the way to ``high``, one step of one group at a time.

    Args:
        low: Widths of the lower sparsity.
        high: Widths of the higher sparsity; no group is wider than in ``low``.
        grids: Group name -> the widths that the group may take.
    """
    state = low
    for name in low:
        while state[name] < high[name]:
            state = {**state, name: grids[name].up(state[name])}
            yield state


def _narrow(
    low: Widths, high: Widths, states: Iterable[Widths], measure: Measure, target: float
) -> tuple[Widths, Widths]:
    """Return the closest two around the target among ``low``, ``high`` and the states between them."""
    below, above = (measure(low), low), (measure(high), high)
    for state in states:
        cost = measure(state)
        if below[0] < cost <= target:
            below = (cost, state)
        elif target < cost < above[0]:
            above = (cost, state)
    return below[1], above[1]


def _steps(low: Widths, high: Widths, grids: Mapping[str, WidthGrid]) -> Iterator[Widths]:
    """Return the states one step above ``low`` or one step below ``high``."""
    for name, grid in grids.items():
        yield {**low, name: grid.up(low[name])}
        yield {**high, name: grid.down(high[name])}


def _swaps(low: Widths, high: Widths, grids: Mapping[str, WidthGrid]) -> Iterator[Widths]:
    """Return the states that are one step above in one group and one step below in another."""
    for state in (low, high):
        for more, less in permutations(grids, 2):
            yield {**state, more: grids[more].up(state[more]), less: grids[less].down(state[less])}
