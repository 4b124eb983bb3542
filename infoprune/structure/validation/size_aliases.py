"""Couple widths that code reads from another tensor, as ``reshape(b, x.shape[1], -1)`` does.

Such code holds no number, so there is nothing to rewrite; but the two dimensions can only be cut alike. A dry run
cuts every group by a number of its own. So where an operator asks for a size that its result should not have, but that
another dimension in the same module has after the cut, its channels are tied to that dimension's, index by index. So
are those of modules that run the same code: a dry run may break off before it reaches them, or leave them the right
size by chance. The next dry run shows whether this was all that stood in the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels
from infoprune.structure.plan import PruningPlan
from infoprune.structure.validation.conflict import Conflict
from infoprune.structure.validation.module_paths import ancestors, join, siblings

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession


def tie(session: TraceSession, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> bool:
    """Unite dimensions with those from which the code reads their width; False if all are united already.

    Args:
        session: the traced model.
        structure: its channel groups.
        plan: the probe plan that has conflicts.
        conflicts: what its dry run returned.
    """
    keep = structure.keep_mask(plan)
    axes_in = AxesIn(structure)
    tied = False
    for conflict in conflicts:
        for axis, _, size in conflict.asked:
            if size == len(axis) or (axis < 0).any():  # it is written out, or not all of it is the model's
                continue
            others = (other for module in _places(session, conflict.module) for other in axes_in(module, len(axis)))
            read = next((other for other in others if keep[other].sum() == size), None)
            if read is not None:  # if it is the wrong one, the next dry run finds the right one
                session.space.unite(axis, read, conflict.op)
                for counterpart, other in _in_siblings(session, structure, conflict, axis, read):
                    session.space.unite(counterpart, other, conflict.op)
                tied = True
    return tied


def _places(session: TraceSession, module: str) -> tuple[str, ...]:
    """Return the modules in which to look for a width: one without weights reads those of tensors that it is given."""
    prefix = join(module, "")
    return (module,) if any(name.startswith(prefix) for name in session.labels) else ancestors(module)


def _in_siblings(
    session: TraceSession, structure: Structure, conflict: Conflict, axis: Labels, read: Labels
) -> Iterator[tuple[Labels, Labels]]:
    """Yield the counterparts of two axes in siblings of a module: one of a result, and one of a tensor in it."""
    records, number = structure.records, conflict.asking
    slot = _slot_inside(session, conflict.module, read)
    if slot is None or number < 0 or records[number].module != conflict.module:
        return
    tensor, tensor_dim = slot
    places = ((place, output.axes) for place, output in enumerate(records[number].outputs))
    place, dim = next((place, dim) for place, axes in places for dim, each in enumerate(axes) if each is axis)

    def calls(module: str) -> list[int]:
        return [n for n in session.operators_of(module) if records[n].name == records[number].name]

    own = calls(conflict.module)
    for sibling in siblings(session.modules, conflict.module):
        same, labels = calls(sibling), session.labels.get(join(sibling, tensor))
        if labels is None or len(same) != len(own):
            continue
        outputs = records[same[own.index(number)]].outputs
        counterpart = outputs[place].axes[dim] if place < len(outputs) and dim < len(outputs[place].axes) else None
        if counterpart is not None and len(counterpart) == len(labels[tensor_dim]) and (counterpart >= 0).all():
            yield counterpart, labels[tensor_dim]


def _slot_inside(session: TraceSession, module: str, read: Labels) -> tuple[str, int] | None:
    """Return the tensor inside a module, by its path there, and the dimension of it that has these labels."""
    number, prefix = session.space.slot_numbers.get(id(read)), join(module, "")
    slot = None if number is None else session.space.slots[number]
    return (slot.tensor.removeprefix(prefix), slot.dim) if slot and slot.tensor.startswith(prefix) else None


class AxesIn:
    """The labelled dimensions, by size, of a module's tensors and of the results that it computes."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure

    @cached_property
    def _axes(self) -> dict[tuple[str, int], dict[int, Labels]]:
        """By module and size: the arrays, each once."""
        axes: dict[tuple[str, int], dict[int, Labels]] = {}
        for tensor, own in self._structure.space.labels.items():
            for module in ancestors(tensor.rpartition(".")[0]):
                for axis in own:
                    axes.setdefault((module, len(axis)), {})[id(axis)] = axis
        for record in self._structure.records:
            for axis in record.axes:
                axes.setdefault((record.module, len(axis)), {})[id(axis)] = axis
        return axes

    def __call__(self, module: str, size: int) -> Iterator[Labels]:
        """Return the attributes of a module that have a size."""
        return (axis for axis in self._axes.get((module, size), {}).values() if (axis >= 0).all())
