"""Operators whose channels can go in several ways: equal positions of all parts, or whole parts.

A grouped convolution and a view that splits a dimension take the way that leaves the finer choice. That may be the
wrong one: eight channels in four groups of two go as four groups, and where another layer wants equal positions of all
groups, they are bound together; or the code holds the number of groups. In these cases the other ways are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels
from infoprune.structure.tracing.session import TraceSession
from infoprune.structure.validation.module_paths import siblings

MOST_TRIES = 6
"""For the operators of so many places in a model's code other ways are tried."""


class WayFinder:
    """Try the ways in which operators let channels go.

    Args:
        session: the model, already run.
    """

    def __init__(self, session: TraceSession) -> None:
        self._session = session
        self._tried: dict[int, int] = {}

    def take_untried(self, structure: Structure, labels: Labels, traced_again: Callable[[], Structure]) -> bool:
        """Take another way of an operator that couples these labels, and of the same operator in siblings.

        A way in which none of these labels can go is passed over. After the last way the first is taken again, so that
        the reasons of frozen channels are those of the first.

        Args:
            structure: the groups.
            labels: (n,) labels that a conflict names.
            traced_again: labels the operators anew, and returns the structure then.

        Returns:
            Whether another way was taken.
        """
        for numbers in self._alike(structure, labels):
            tried = self._tried.get(numbers[0], 0)
            if (tried or len(self._tried) < MOST_TRIES) and tried < structure.records[numbers[0]].ways:
                ways, coupled = structure.records[numbers[0]].ways, self._coupled(structure, numbers, labels)
                if self._take_next(numbers, tried, ways, coupled, traced_again):
                    return True
        return False

    def _take_next(
        self, numbers: Sequence[int], tried: int, ways: int, coupled: Labels, traced_again: Callable[[], Structure]
    ) -> bool:
        """Take the next way in which some labels can go, or the first again; return whether this changes anything."""
        state = self._session.state()
        for way in range(tried + 1, ways):
            self._tried[numbers[0]] = way
            self._take(numbers, way)
            stays = traced_again().stays
            if not len(coupled) or not stays[coupled].all():
                return True
        self._tried[numbers[0]] = ways
        if tried:
            self._take(numbers, 0)
            traced_again()
        else:
            self._session.restore(state)
        return tried > 0

    def _coupled(self, structure: Structure, numbers: Sequence[int], labels: Labels) -> Labels:
        """Return those of some labels of the model's tensors that operators couple."""
        units = structure.component[np.concatenate([u.a for u in structure.space.unions if u.op in numbers])]
        own = labels[(labels >= 0) & (labels < structure.space.slots_end())]
        return own[np.isin(structure.component[own], units)]

    def free(self, structure_now: Callable[[], Structure]) -> None:
        """Take other ways where they free channels that operators couple or freeze; the model runs again.

        Args:
            structure_now: returns the structure, as far as the operators tell.
        """
        best = structure_now()
        stuck = [slot for group in best.groups if group.frozen for slot in group.slots]
        labels = [self._session.labels[slot.tensor][slot.dim][slot.index] for slot in stuck]
        found = list(self._alike(best, np.concatenate(labels)))[:MOST_TRIES] if labels else []
        for places in self._by_code(found):
            for way in range(1, best.records[places[0][0]].ways):
                if len(places) > 1 and not self._frees_any(places, way, best, structure_now):
                    continue
                for numbers in places:
                    state = self._session.state()
                    self._take(numbers, way)
                    self._session.retrace()
                    if free_channels(freed := structure_now()) > free_channels(best):
                        best = freed
                    else:
                        self._session.restore(state)

    def _by_code(self, found: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
        """Group places that seem to be one line of code, run for several tensors: the heads of a detector, say."""
        records = self._session.records
        same: dict[tuple[str | int, ...], list[Sequence[int]]] = {}
        for numbers in found:
            record = records[numbers[0]]
            names = [records[number].name for number in range(numbers[0] - 1, min(numbers[0] + 2, len(records)))]
            same.setdefault((record.module, record.ways, *names), []).append(numbers)
        return list(same.values())

    def _frees_any(
        self, places: Sequence[Sequence[int]], way: int, best: Structure, structure_now: Callable[[], Structure]
    ) -> bool:
        """Return whether a way, taken in some places at once, frees anything; what frees nothing then is not tried."""
        state = self._session.state()
        for numbers in places:
            self._take(numbers, way)
        self._session.retrace()
        sizes = _unit_sizes(structure_now())
        self._session.restore(state)
        return bool((sizes < _unit_sizes(best)).any())

    def _take(self, numbers: Sequence[int], way: int) -> None:
        records = self._session.records
        self._session.space.ways |= {number: way % records[number].ways for number in numbers}

    def _alike(self, structure: Structure, labels: Labels) -> Iterator[list[int]]:
        """Yield the operators with several ways that tie some of these labels, each with those of the same code."""
        several = {number for number, record in enumerate(structure.records) if record.ways > 1}
        ties = [union for union in structure.space.unions if union.op in several and len(union.a)]
        if not ties:
            return
        meant = np.zeros(len(structure.component), dtype=bool)  # by the smallest label of a unit
        meant[structure.component[labels]] = True
        numbers = {union.op for union in ties if meant[structure.component[union.a[0]]]}
        while numbers:
            number = min(numbers)
            alike = self._same_code(number)
            numbers.difference_update(alike)
            yield alike

    def _same_code(self, number: int) -> list[int]:
        """Return an operator and those in the same place of other passes and of modules that run the same code."""
        records = self._session.records
        module, name, ways = records[number].module, records[number].name, records[number].ways
        modules = [module, *siblings(self._session.modules, module)]
        runs = [tracer.operators_of(module) for module in modules for tracer in self._session.passes.tracers]
        place = next(run.index(number) for run in runs if number in run)
        alike = (run[place] for run in runs if place < len(run))
        return sorted(other for other in alike if (records[other].name, records[other].ways) == (name, ways))


def free_channels(structure: Structure) -> tuple[int, int]:
    """Return how many indices of slots can go, and in how many units.

    Args:
        structure: The channel groups.
    """
    indices = sum(len(slot.index) for group in structure.prunable for slot in group.slots)
    return indices, sum(group.size for group in structure.prunable)


def _unit_sizes(structure: Structure) -> Labels:
    """Return for every label of a slot how many go with it; more than all of them if it has to stay."""
    end = structure.space.slots_end()
    component = structure.component[:end]
    return np.where(structure.stays[:end], end + 1, np.bincount(component, minlength=end)[component])
