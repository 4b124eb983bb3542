"""Turn loss curves into widths by greedy steps of least information loss per saved cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.curves import LossCurves, Round
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt

if TYPE_CHECKING:
    pass

STEPS = 16
"""In so many steps a group goes from whole to nothing, or in single ones if it has fewer units."""


def descend(
    curves: LossCurves, costs: UnitCosts, grids: Mapping[str, WidthGrid], floors: Mapping[str, int], depth: float
) -> Iterator[Widths]:
    """Return widths from the whole model down to the floors, and from there evenly to the minimum.

    Each step makes one group narrower: the group for which a unit of saved cost adds the least loss. The loss is
    measured in the nearest wider round. Added to it is ``depth`` times the logarithm of the factor by which the group
    becomes narrower, unless the outputs do not depend on the group.

    Args:
        curves: The measured losses.
        costs: Widths -> cost of one unit of each group.
        grids: Group name -> the widths that the group may take.
        floors: Group name -> the width that the first phase ends at.
        depth: Penalty on the deepest cut, in units of the loss; 0: none.

    Returns:
        The widths after each step, the whole model first.
    """
    state = {name: grid.size for name, grid in grids.items()}
    yield dict(state)
    for number, one in enumerate(curves.rounds):
        last = number + 1 == len(curves.rounds)
        ends = floors if last else {name: curves.rounds[number + 1].widths.get(name, 1) for name in grids}
        ends = {name: min(state[name], max(ends[name], grids[name].lowest)) for name in grids}
        slopes = {name: _slopes(one, name, state[name], ends[name], grids[name], depth) for name in grids}
        while any(slopes.values()):
            unit = costs(state)
            name = min(
                (name for name in slopes if slopes[name]), key=lambda name: _ratio(slopes[name][0][1], unit[name])
            )
            width, _ = slopes[name].pop(0)
            state[name] = width
            yield dict(state)
    for share in range(STEPS - 1, -1, -1):
        yield {name: max(grids[name].lowest, width * share // STEPS) for name, width in state.items()}


def _ratio(loss: float, cost: float) -> float:
    return loss / cost if cost > 0 else math.inf


def _slopes(one: Round, name: str, start: int, end: int, grid: WidthGrid, depth: float) -> list[tuple[int, float]]:
    """Return the steps of a group from one width to another, each with the loss that it adds for a unit.

    The losses are replaced by their largest convex bound from below, so that a cheap deep step behind a dear one counts
    together with it.
    """
    step = max(grid.step, grid.size // STEPS)
    widths = [start, *range((start - 1) // step * step, end, -step), end] if end < start else []

    def loss(width: int) -> float:
        return one.added(name, width) + (depth * math.log(start / width) if one.matters(name) else 0.0)

    return _convex(list(dict.fromkeys(widths)), loss)


def _convex(widths: Sequence[int], loss: Callable[[int], float]) -> list[tuple[int, float]]:
    values = [loss(width) for width in widths]
    corners: list[int] = []
    for place in range(len(widths)):
        while len(corners) > 1 and _slope(widths, values, corners[-2], corners[-1]) >= _slope(
            widths, values, corners[-1], place
        ):
            corners.pop()
        corners.append(place)
    steps = []
    for first, last in pairwise(corners):
        steps += [(widths[place], _slope(widths, values, first, last)) for place in range(first + 1, last + 1)]
    return steps


def _slope(widths: Sequence[int], values: Sequence[float], first: int, last: int) -> float:
    return (values[last] - values[first]) / (widths[first] - widths[last])


def through(states: Sequence[Widths], grids: Mapping[str, WidthGrid]) -> WidthsAt:
    """Return the widths on the way through some states, as far that the grids allow.

    Args:
        states: Widths in the order in which they fall.
        grids: Group name -> the widths that the group may take.

    Returns:
        A function from a sparsity in [0, 1] to widths.
    """

    def widths(sparsity: float) -> Widths:
        state = states[round(sparsity * (len(states) - 1))]
        return {name: grid.at(state[name] / (grid.original or grid.size)) for name, grid in grids.items()}

    return widths
