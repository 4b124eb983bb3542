"""The plans that a trace rehearses, to find what a model's code does not follow."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

import numpy as np

from infoprune.structure.groups import ChannelGroup, Structure
from infoprune.structure.labels import Labels
from infoprune.structure.op import GIVEN_SIZES
from infoprune.structure.plan import PruningPlan

_FEW, _SMALL = 8, 16
"""So many of a group's slots tell which widths it has; groups of fewer units may lose a single one."""


def trials(structure: Structure) -> Iterator[PruningPlan]:
    """Plans that cut something from every prunable group, irregularly.

    One speaks for all, except where channels are taken by their places: there the second cuts what the first kept; and
    where code may read one width for another of groups so small and many that some had to leave the same: further
    ones, until any two of them have left different widths.
    """
    generator = np.random.default_rng(0)
    gone: dict[int, dict[int, int]] = {}
    first, second = {}, {}
    for group in sorted(structure.prunable, key=attrgetter("size")):  # those with the fewest choices first
        count = _unlike(structure, group, gone, generator)
        order = generator.permutation(group.size)
        first[group.name], second[group.name] = order[:count], order[count:]
    yield structure.plan(first)
    if any(record.by_place for record in structure.records):
        yield structure.plan(second)
    for counts in _told_apart(structure):
        yield structure.plan({**first, **{name: range(count) for name, count in counts.items()}})


def _told_apart(structure: Structure) -> Iterator[dict[str, int]]:
    """How many units of groups to cut so that each two of one size leave different widths once at least."""
    asked = (r for r in structure.records if r.splits or r.name in GIVEN_SIZES or r.name.startswith("aten.split"))
    read = {len(axis) for r in asked for output in r.outputs for axis in output.axes if axis is not None}
    alike: dict[int, list[str]] = {}
    for group in structure.prunable:
        if group.size in read:
            alike.setdefault(group.size, []).append(group.name)
    crowded = {size: names for size, names in alike.items() if len(names) > len(_choices(size)) > 1}
    digit = 0
    while any(len(names) > len(_choices(size)) ** digit for size, names in crowded.items()):
        counts = {}
        for size, names in crowded.items():
            choices = _choices(size)  # the groups' numbers, written with so many digits
            counts.update({n: int(choices[i // len(choices) ** digit % len(choices)]) for i, n in enumerate(names)})
        yield counts
        digit += 1


def _choices(size: int) -> Labels:
    """How many of so many units a trial may cut."""
    return np.arange(size // 4 if size >= _SMALL else 1, size // 2 + 1)


def _unlike(
    structure: Structure, group: ChannelGroup, gone: dict[int, dict[int, int]], generator: np.random.Generator
) -> int:
    """How many units to cut: a quarter to a half, and so that groups leave different widths of one size.

    Else code that takes one group's width for another's would go unnoticed. ``gone`` tells, by the size of a dimension,
    how many of its indices go with other groups, the last ones with the largest numbers; where all choices are taken,
    the one that was taken first comes again.
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
