"""Probe plans: cuts that a trace runs dry to find the conflicts of a model."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

import numpy as np

from infoprune.structure.channel_groups import ChannelGroup
from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels, distinct
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tracing.options import GIVEN_SIZES
from infoprune.structure.validation.size_aliases import AxesIn

_FEW, _SMALL, _MORE = 8, 16, 6
"""So many of a group's slots tell which widths it has; groups of fewer units may lose a single one; so many further
probe plans at most tell apart what the first made the same."""


def probe_plans(structure: Structure) -> Iterator[PruningPlan]:
    """Return plans that cut something from every prunable group, irregularly.

    One plan is enough, with two exceptions. Where channels are taken by their places, a second plan cuts what the first
    kept. Where code may read one width for another that the cut has made equal, further plans tell the two apart.

    Args:
        structure: The channel groups.
    """
    generator = np.random.default_rng(0)
    gone: dict[int, dict[int, int]] = {}
    first, second = {}, {}
    for group in sorted(structure.prunable, key=attrgetter("size")):  # those with the fewest choices first
        count = _unlike(structure, group, gone, generator)
        order = generator.permutation(group.size)
        first[group.name], second[group.name] = order[:count], order[count:]
    plan = structure.plan(first)
    yield plan
    if any(record.by_place for record in structure.records):
        yield structure.plan(second)
    same = set(_same_widths(structure, plan))
    for digit in range(_MORE if same else 0):
        plan = structure.plan(dict(_by_digit(structure, digit)))
        left = same.intersection(_same_widths(structure, plan))
        if left != same:  # the plan tells widths apart
            yield plan
        same = left


def tells_less(structure: Structure, plan: PruningPlan) -> bool:
    """Return whether a dry run of a plan tells less than probe plans: it leaves groups whole, or makes widths equal.

    Args:
        structure: the groups.
        plan: the plan.
    """
    gone = np.flatnonzero(~structure.keep_mask(plan)[:-1])
    return len(structure.groups_cut(gone)) < len(structure.prunable) or any(_same_widths(structure, plan))


def _same_widths(structure: Structure, plan: PruningPlan) -> Iterator[tuple[int, bytes]]:
    """Return operators that may read one width for another that a cut has made equal, with the groups of the other."""
    keep = structure.keep_mask(plan)
    axes_in = AxesIn(structure)
    widths: dict[int, int] = {}  # identity of an axis -> its width after the cut
    depends: dict[int, bytes] = {}  # identity of an axis -> the groups that its width depends on

    def width(axis: Labels) -> int:
        if id(axis) not in widths:
            widths[id(axis)] = len(axis) if keep[distinct(axis)].all() else int(keep[axis].sum())
        return widths[id(axis)]

    def groups(axis: Labels) -> bytes:
        if id(axis) not in depends:
            depends[id(axis)] = np.sort(structure.group_of_root[structure.component[axis]]).tobytes()
        return depends[id(axis)]

    for number, record in enumerate(structure.records):
        told = record.name in GIVEN_SIZES and not record.sizes_follow
        if not told and not record.name.startswith("aten.split"):
            continue
        for axis in record.axes:
            for other in axes_in(record.module, len(axis)) if width(axis) < len(axis) else ():
                if width(other) == width(axis) and groups(other) != groups(axis):
                    yield number, groups(other)


def _by_digit(structure: Structure, digit: int) -> Iterator[tuple[str, range]]:
    """Choose each group's cut by a digit of its number, so that any two groups of one size differ for some digit."""
    for number, group in enumerate(structure.prunable):
        choices = _choices(group.size) if group.size > 3 else np.arange(2)  # of two or three units, one goes or none
        yield group.name, range(int(choices[number // len(choices) ** digit % len(choices)]))


def _choices(size: int) -> Labels:
    """Return how many units of a group of ``size`` units a probe plan may cut: the choices."""
    return np.arange(size // 4 if size >= _SMALL else 1, size // 2 + 1)


def _unlike(
    structure: Structure, group: ChannelGroup, gone: dict[int, dict[int, int]], generator: np.random.Generator
) -> int:
    """Return how many units to cut: a quarter to a half, so that groups of one size keep different widths.

    Else code that reads one group's width for another's would go unnoticed. ``gone`` holds for each size of a dimension
    how many of its indices other groups lose, each with the order in which it was taken. If all choices are taken, the
    one that was taken first is taken again.
    """
    choices = generator.permutation(_choices(group.size))
    sides = {(structure.shapes[s.tensor][s.dim], len(s.index) // group.size) for s in group.slots[:_FEW]}

    def taken(count: int) -> int:
        return max(gone.get(size, {}).get(count * times, -1) for size, times in sides)

    count = next((n for n in choices.tolist() if taken(n) < 0), None)
    if count is None:
        count = min(choices.tolist(), key=taken)
    for size, times in sides:
        counts = gone.setdefault(size, {})
        counts[count * times] = max(counts.values(), default=-1) + 1
    return count
