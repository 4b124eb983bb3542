"""Dry run: run a plan on shapes, before anything is changed, and compare with the original.

A model's code can contradict its labels: a size written out (``view(b, 197, 3, 64)``), a slice at a fixed place, a
factor computed from a width. So the shrunk model runs once on shapes with the labels that its tensors would keep, and
every operator's result must be the original's result without the removed labels: same sizes, same channels in the same
order, same factors. Where it is not, those labels are in conflict with the code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from infoprune.errors import TraceError
from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery import attributes
from infoprune.structure.tracing.session import TraceSession
from infoprune.structure.validation.compared_pass import ComparedPass
from infoprune.structure.validation.conflict import COMPUTED, Conflict
from infoprune.structure.validation.module_paths import siblings
from infoprune.structure.validation.operators import sizes_refused
from infoprune.structure.validation.planned_cut import PlannedCut


def dry_run(session: TraceSession, structure: Structure, plan: PruningPlan) -> list[Conflict]:
    """Run ``plan`` on shapes; return its conflicts, none if the model's code runs as before.

    Args:
        session: the traced model.
        structure: its channel groups.
        plan: what would go.

    Returns:
        The conflicts of the first pass (eval mode, train mode) that has any, in the order of the operators.

    Raises:
        TraceError: a rule fails.
    """
    if plan.is_empty:
        return []
    cut = PlannedCut(session, structure, plan)
    # Tensors of the shrunk sizes take the place of the model's own, which stay as they are.
    stand_ins = {name: _shrunk(session, name, plan.shape_after(name)) for name in plan.shapes}
    labels = {name: list(map(cut.kept, axes)) for name, axes in session.labels.items()}
    names = {id(entry.tensor): name for name, entry in session.owned.items()}
    changed = attributes.changes(session.modules, plan, names)
    for train, tracer in session.passes.to_repeat:
        compared = ComparedPass(cut, tracer)
        try:
            with attributes.rewritten(changed):
                session.run_pass(compared, train, session.background() | stand_ins, labels)
            compared.finish()
        except TraceError:
            raise
        except Exception as error:
            # Code that fails after a conflict fails because of it; code that fails by itself is a conflict of its own.
            if compared.conflicts:
                compared.conflicts += _sibling_conflicts(cut, compared.conflicts)
            else:
                compared.conflicts = _code_conflicts(cut, compared, error)
        if compared.conflicts:
            return compared.conflicts
    return []


def bisect(session: TraceSession, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> list[Conflict]:
    """Narrow conflicts of several groups down: run parts of the plan dry and keep the groups at fault.

    Args:
        session: the traced model.
        structure: its channel groups.
        plan: the plan that has conflicts.
        conflicts: what a dry run of it returned.

    Returns:
        The first conflict of several groups and the same conflict in siblings of its module, with the groups at fault
        only; ``conflicts`` where none has several.
    """
    cut = [structure.groups_cut(conflict.labels) for conflict in conflicts]
    number = next((number for number, groups in enumerate(cut) if len(groups) > 1), None)
    if number is None:
        return conflicts
    first, at_fault = conflicts[number], np.isin(cut[number], _culprits(session, structure, plan, cut[number]))
    return [
        replace(conflict, labels=structure.labels_of(groups[at_fault]))
        for conflict, groups in zip(conflicts, cut, strict=True)
        if conflict is first or (conflict.in_sibling and conflict.op == first.op and len(groups) == len(at_fault))
    ]


def _culprits(session: TraceSession, structure: Structure, plan: PruningPlan, groups: Labels) -> Labels:
    """Find by bisection the groups whose cut makes the plan fail."""
    while len(groups) > 1:
        halves = np.array_split(groups, 2)
        fails = (half for half in halves if dry_run(session, structure, structure.part_of(plan, half)))
        failing = next(fails, None)
        if failing is None:  # only together
            break
        groups = failing
    return groups


def _shrunk(session: TraceSession, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor on meta with the shape that the plan leaves."""
    tensor = session.owned[name].tensor
    on_shapes = session.on_shapes and tensor.is_floating_point()
    make = torch.empty if on_shapes else torch.zeros  # on meta, where zeros take four times as long
    cut = make(shape, dtype=tensor.dtype, device="meta" if on_shapes else tensor.device)
    last = not tensor.is_contiguous() and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return cut.to(memory_format=torch.channels_last) if last else cut


def _sibling_conflicts(cut: PlannedCut, conflicts: list[Conflict]) -> list[Conflict]:
    """Return the same conflicts in the module's siblings: a dry run that broke off there did not reach them."""
    session, found = cut.session, []
    for conflict in conflicts:
        if conflict.reason in COMPUTED:  # what is a factor here may be cut by whole heads there
            continue
        module = cut.structure.records[conflict.op].module
        slots = session.space.slots_with(conflict.labels)
        own = [slot for slot in slots if module and slot.tensor.startswith(f"{module}.")]
        for sibling in siblings(session.modules, module) if own else ():
            names = [(sibling + slot.tensor.removeprefix(module), slot.dim) for slot in own]
            axes = [session.labels[name][dim] for name, dim in names if name in session.labels]
            labels = list(map(cut.removed, axes))
            if any(len(part) for part in labels):
                found.append(Conflict(np.concatenate(labels), conflict.reason, conflict.op, sibling, in_sibling=True))
    return found


def _code_conflicts(cut: PlannedCut, compared: ComparedPass, error: Exception) -> list[Conflict]:
    """Return the conflicts where the model's code itself failed in a module: what is cut there and in its siblings."""
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    session, conflicts, module = cut.session, [], compared.module
    ran = session.operators_of(module)
    place = ran.index(compared.upcoming) if compared.upcoming in ran else -1
    record = session.records[compared.upcoming] if compared.upcoming >= 0 else None
    sizes = sizes_refused(first_line, len(record.outputs[0].shape)) if record and record.outputs else []
    asked = compared.asked(record, [sizes]) if record and sizes else ()
    for name in [module, *siblings(session.modules, module)]:
        if name == module or (name and cut.cuts_inside(name)):
            where = f" in {name}" if name else ""
            reason = f"cannot go without breaking the model's code{where}: {first_line}"
            operators = session.operators_of(name)
            upcoming = operators[place] if 0 <= place < len(operators) else -1
            labels = cut.removed_inside(name)
            own = asked if name == module else ()
            conflicts.append(Conflict(labels, reason, -1, name, upcoming, own, in_sibling=name != module))
    return conflicts
