"""Widths that a model's code reads from another tensor: ``reshape(b, x.shape[1], -1)`` of what was made from ``x``.

Such code holds no number, so there is nothing to rewrite; but the two dimensions can only be cut alike. A rehearsal
cuts every group by a number of its own. So where an operator asks for a size that its result should not have, but that
another dimension in the same module has after the cut, its channels are tied to that dimension's, index by index.
The next rehearsal shows whether this was all that stood in the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infoprune.structure.blame import Blame
from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels
from infoprune.structure.plan import PruningPlan

if TYPE_CHECKING:
    from infoprune.structure.trace import TraceSession


def tie(session: TraceSession, structure: Structure, plan: PruningPlan, blamed: list[Blame]) -> bool:
    """Tie dimensions whose width the code reads elsewhere to what it reads; False if there is nothing new to tie."""
    alive = structure.alive(plan)
    tied = False
    for blame in blamed:
        for axis, _, size in blame.asked:
            if size == len(axis) or (axis < 0).any():  # it is written out, or not all of it is the model's
                continue
            axes = _axes_in(session, structure, blame.module, len(axis))
            read = next((other for other in axes if alive[other].sum() == size), None)
            if read is not None:  # should it be the wrong one, the next rehearsal finds the right one too
                session.space.unite(axis, read, blame.op)
                tied = True
    return tied


def _axes_in(session: TraceSession, structure: Structure, module: str, size: int) -> Iterator[Labels]:
    """The removable dimensions of a size of what a module holds and of what it computes itself."""
    within = f"{module}." if module else ""
    held = (axis for name, axes in session.labels.items() if name.startswith(within) for axis in axes)
    own = (record for record in structure.records if record.module == module)
    made = (axis for record in own for output in record.outputs for axis in output.axes if axis is not None)
    for axes in (held, made):
        yield from (axis for axis in axes if len(axis) == size and (axis >= 0).all())
