"""Find the numbers in modules that may be the size that a conflict asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import nn

from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels
from infoprune.structure.validation.conflict import Conflict
from infoprune.structure.validation.held_numbers import elements, integers, sequence
from infoprune.structure.validation.module_paths import join

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession

AskedFor: TypeAlias = "Callable[[Structure, Conflict], Iterable[tuple[list[str], Labels, int]]]"
"""From a conflict: paths of numbers that may be a size, the labels of that dimension, and its place in the request."""


class HeldNumberSearch:
    """Search the modules of a conflict for numbers that are as large as the dimensions concerned.

    Args:
        session: The traced model.
        head_counts: Returns the paths of the numbers that are known to be head counts, which are no widths.
    """

    def __init__(self, session: TraceSession, head_counts: Callable[[], set[str]]) -> None:
        self._session = session
        self._head_counts = head_counts

    def integers(self, module: str) -> dict[str, int]:
        """Return the whole numbers that a module holds, by attribute; none of a module whose numbers are all known.

        Args:
            module: path of the module.
        """
        return {} if module in self._session.space.head_inputs else integers(self._module(module))

    def by_operators(self, structure: Structure, conflict: Conflict) -> Iterator[tuple[list[str], Labels, int]]:
        """Yield each dimension that an operator makes or splits: paths of numbers that may be its size, labels, place.

        Args:
            structure: the groups.
            conflict: where the dry run failed.
        """
        if conflict.asking < 0:
            return
        record, module = structure.records[conflict.asking], conflict.module
        outputs, made = record.outputs, record.axes
        # The parts of a split belong together: a list of their sizes, or one number that is their sum.
        splits = zip(*(output.axes for output in outputs), strict=False) if len(outputs) > 1 else ()
        parts = [[axis for axis in axes if axis is not None] for axes in splits if all(a is not None for a in axes)]
        for axes in [outputs[0].axes] if len(outputs) == 1 else parts:
            sizes = [0 if axis is None else len(axis) for axis in axes] if len(outputs) > 1 else outputs[0].shape
            owners = self._owners(module)
            held = ([join(owner, name) for name in sequence(self._module(owner), sizes)] for owner in owners)
            paths = next(filter(None, held), [])
            for place, (path, axis) in enumerate(zip(paths, axes, strict=False)):
                if axis is not None:
                    yield [path], axis, place
        # Sizes among the operator's arguments say which dimension was meant; without them every dimension may be.
        for axis, place in [asked[:2] for asked in conflict.asked] or zip(made, range(len(made)), strict=True):
            channels = axis[np.sort(np.unique(axis, return_index=True)[1])]
            # Of flattened maps, ``channels * 7 * 7``, each channel fills a block.
            for labels in (axis, channels) if len(channels) < len(axis) else (axis,):
                if paths := self._equal(module, len(labels)):
                    yield paths, labels, place
                    break
        for place, axes in enumerate(parts):
            yield self._equal(module, sum(map(len, axes))), np.concatenate(axes), place
        for place, labels in enumerate(record.counted, len(made)):
            yield self._equal(module, len(labels)), labels, place

    def by_elements(self, structure: Structure, conflict: Conflict) -> Iterator[tuple[list[str], Labels, int]]:
        """Yield each dimension that an operator makes: paths of equal numbers in lists and tuples, labels, place.

        Args:
            structure: the groups.
            conflict: where the dry run failed.
        """
        axes = structure.records[conflict.asking].axes if conflict.asking >= 0 else ()
        for place, axis in enumerate(axes):
            for owner in self._owners(conflict.module):
                numbers = elements(self._module(owner)).items()
                yield [join(owner, name) for name, n in numbers if n == len(axis)], axis, place

    def by_checks(self, structure: Structure, conflict: Conflict) -> Iterator[tuple[list[str], Labels, int]]:
        """Yield each width of a module's tensors once, where the module's own code fails, as if it checked its input.

        Args:
            structure: the groups.
            conflict: where the dry run failed, before the module ran any operator.
        """
        if conflict.op < 0:
            within = f"{conflict.module}." if conflict.module else ""
            axes = [axis for name, axes in self._session.labels.items() if name.startswith(within) for axis in axes]
            widths = {structure.component[axis].tobytes(): (axis, at) for at, axis in enumerate(axes) if len(axis)}
            for axis, place in widths.values():
                yield self._equal(conflict.module, len(axis)), axis, place

    def _equal(self, module: str, value: int) -> list[str]:
        """Return the numbers of a module, else of its children that are not PyTorch's own, that have a value."""
        known = self._head_counts()
        owner, *children = self._owners(module)
        for places in ([owner], children):
            numbers = {join(place, name): n for place in places for name, n in self.integers(place).items()}
            found = [path for path, number in numbers.items() if number == value and path not in known]
            if found:
                return found
        return []

    def _owners(self, module: str) -> list[str]:
        """Return the modules whose numbers a module's code may read: itself, then its children that are not PyTorch's.

        A method of a child that is called by another name than ``forward`` runs as code of the module.
        """
        children = self._module(module).named_children()
        own = [join(module, name) for name, child in children if not type(child).__module__.startswith("torch.nn.")]
        return [module, *own]

    def _module(self, name: str) -> nn.Module:
        return self._session.model.get_submodule(name)
