"""Rehearsal: run a cut on shapes before anything is touched, and see that the model's code follows it.

A model's code can contradict its labels: a size written out (``view(b, 197, 3, 64)``), a slice at a fixed place, a
factor computed from a width. So the shrunk model runs once on shapes with the labels that its tensors would keep, and
every operator's result must be the original's result without the removed labels: same sizes, same channels in the same
order, same factors. Where it is not, those labels are in conflict with the code, and the caller freezes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from infoprune.errors import TraceError
from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, labels_of, set_labels
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery import attributes
from infoprune.structure.tracing.rule_context import GIVEN_SIZES, OpRecord, Output
from infoprune.structure.tracing.rules import Rule, tensors_in
from infoprune.structure.tracing.rules.elementwise import created
from infoprune.structure.tracing.rules.movement import repeat
from infoprune.structure.tracing.rules.shape import expand
from infoprune.structure.tracing.tracer import Operator, Tracer, apply, execute, holds_anything, scalars_in
from infoprune.structure.validation.conflict import FACTOR, FIXED, Asked, Conflict
from infoprune.structure.validation.dry_run_context import Diverged, DryRunContext, UnalignedContext
from infoprune.structure.validation.size_attributes import ancestors, siblings

if TYPE_CHECKING:
    from infoprune.structure.groups import Structure
    from infoprune.structure.trace import TraceSession


_WAYS = frozenset({
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.as_strided", "aten.permute",
    "aten.transpose", "aten.t", "aten.squeeze", "aten.unsqueeze", "aten.expand", "aten.slice", "aten.clone",
    "aten.alias", "aten.copy_", "aten.as_strided_",
})  # fmt: skip
"""Operators that only move numbers: PyTorch chooses among them by its sizes."""

_PRODUCTS = frozenset({"aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.mv", "aten.dot"})
_OF_ONE = frozenset({"aten.mul", "aten.sum"})
"""What takes the place of a product over a single channel."""

_WITH_BIAS = frozenset({"aten.addmm", "aten.baddbmm"})
"""A product and a sum in one."""

MANY = 8
"""Where more groups than these are in conflict at once, it pays to find out which of them are at fault."""


def dry_run(session: TraceSession, structure: Structure, plan: PruningPlan) -> list[Conflict]:
    """Run ``plan`` on shapes; return what stands in its way, nothing if the model's code follows it."""
    if plan.is_empty:
        return []
    keep = structure.keep_mask(plan)
    stand_ins = {name: _shrunk(session, name, plan.shape_after(name)) for name in plan.shapes}
    kept = {id(axis): axis for axes in session.labels.values() for axis in axes}
    for tensor, dims in plan.removed.items():
        for dim in dims:
            axis = session.labels[tensor][dim]
            kept[id(axis)] = axis[keep[axis]]
    labels = {name: [kept[id(axis)] for axis in axes] for name, axes in session.labels.items()}
    names = {id(entry.tensor): name for name, entry in session.owned.items()}
    changed = attributes.changes(session.modules, plan, names)
    conflicts: list[Conflict] = []
    for train, tracer in session.dry_run_passes():
        rehearsal = _DryRun(session, plan, tracer, structure, keep, kept)
        try:
            with attributes.rewritten(changed):
                session.run_pass(rehearsal, train, session.background() | stand_ins, labels)
            rehearsal.finish()
        except TraceError:
            raise
        except Exception as error:
            if rehearsal.conflicts:
                rehearsal.conflicts += _sibling_conflicts(session, structure, keep, rehearsal.conflicts)
            else:
                rehearsal.conflicts = _code_conflicts(session, keep, plan, rehearsal, error)
        conflicts += rehearsal.conflicts
    return conflicts


def bisect(session: TraceSession, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> list[Conflict]:
    """Narrow conflicts of many groups down: run parts of the plan dry and keep the groups at fault."""
    for conflict in conflicts:
        groups = structure.groups_cut(conflict.labels)
        if len(groups) > MANY:
            culprits = _culprits(session, structure, plan, groups)
            return [replace(conflict, labels=structure.labels_of(culprits))]
    return conflicts


def _culprits(session: TraceSession, structure: Structure, plan: PruningPlan, groups: Labels) -> Labels:
    """Groups that the model's code cannot do without, found by halving: the part of the plan that still fails."""
    while len(groups) > 1:
        halves = np.array_split(groups, 2)
        fails = (half for half in halves if dry_run(session, structure, structure.part_of(plan, half)))
        failing = next(fails, None)
        if failing is None:  # only together
            break
        groups = failing
    return groups


def _shrunk(session: TraceSession, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return what stands for a tensor of the model that has been cut."""
    tensor = session.owned[name].tensor
    on_shapes = session.on_shapes and tensor.is_floating_point()
    cut = torch.zeros(shape, dtype=tensor.dtype, device="meta" if on_shapes else tensor.device)
    last = not tensor.is_contiguous() and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return cut.to(memory_format=torch.channels_last) if last else cut


def _by_module(tensors: Iterable[str]) -> dict[str, list[str]]:
    """For every module that has any of these tensors inside, which."""
    inside: dict[str, list[str]] = {}
    for tensor in tensors:
        for module in ancestors(tensor.rpartition(".")[0]):
            inside.setdefault(module, []).append(tensor)
    return inside


def _cut_inside(session: TraceSession, keep: np.ndarray, cut: Mapping[str, list[str]], module: str) -> Labels:
    """The labels that go from the tensors ``cut`` in a module, or in the nearest module around it that loses any."""
    nearest = next(name for name in ancestors(module) if name in cut)
    return np.concatenate([axis[~keep[axis]] for tensor in cut[nearest] for axis in session.labels[tensor]])


def _sibling_conflicts(
    session: TraceSession, structure: Structure, keep: np.ndarray, conflicts: list[Conflict]
) -> list[Conflict]:
    """Return the same conflicts in the module's siblings: a dry run that broke off there did not reach them."""
    found = []
    for conflict in conflicts:
        if conflict.reason == FACTOR:  # what is a factor here may be cut by whole heads there
            continue
        module = structure.records[conflict.op].module
        slots = [slot for slot, where in session.space.slot_ranges() if _meets(conflict.labels, where)]
        own = [slot for slot in slots if module and slot.tensor.startswith(f"{module}.")]
        for like in siblings(session.modules, module) if own else ():
            names = [(like + slot.tensor.removeprefix(module), slot.dim) for slot in own]
            axes = [session.labels[name][dim] for name, dim in names if name in session.labels]
            labels = [axis[~keep[axis]] for axis in axes]
            if any(len(part) for part in labels):
                found.append(Conflict(np.concatenate(labels), conflict.reason, conflict.op, like, like=True))
    return found


def _meets(labels: Labels, where: slice) -> bool:
    return bool(((labels >= where.start) & (labels < where.stop)).any())


def _code_conflicts(
    session: TraceSession, keep: np.ndarray, plan: PruningPlan, rehearsal: _DryRun, error: Exception
) -> list[Conflict]:
    """The model's code itself failed in a module: what is cut there, and in its likes, stays."""
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    conflicts, cut, module = [], _by_module(plan.shapes), rehearsal.module
    ran = session.operators_of(module)
    place = ran.index(rehearsal.upcoming) if rehearsal.upcoming in ran else -1
    for name in [module, *siblings(session.modules, module)]:
        if name == module or (name and name in cut):
            where = f" in {name}" if name else ""
            reason = f"cannot go without breaking the model's code{where}: {first_line}"
            operators = session.operators_of(name)
            upcoming = operators[place] if 0 <= place < len(operators) else -1
            labels = _cut_inside(session, keep, cut, name)
            conflicts.append(Conflict(labels, reason, -1, name, upcoming, like=name != module))
    return conflicts


class _DryRun(Tracer):
    """Replays a traced pass on the shrunk model and compares every operator's result."""

    def __init__(
        self,
        session: TraceSession,
        plan: PruningPlan,
        traced: Tracer,
        structure: Structure,
        keep: np.ndarray,
        kept: Mapping[int, Labels],
    ) -> None:
        super().__init__(traced.space, traced._names, traced.first)
        self.conflicts: list[Conflict] = []
        self._session = session
        self._plan = plan
        self._expected = traced.records
        self._next = 0
        self._aligned = True
        self._lost_in: str | None = None  # the module in which the alignment was last lost
        self._unaligned_outs: Sequence[Tensor] = ()
        self._numbers: Counter[float] = Counter()
        self._ran: list[str] = []
        self._structure = structure
        self._component = np.append(structure.component, -1)
        self._keep = keep
        self._kept = dict(kept)  # what the plan leaves of the original's axes, by their identity
        self._whole = {id(axis): axis for axis in kept.values()}
        self._on_shapes = session.on_shapes
        self._held: list[Any] = []

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule, name = operator.rule, operator.name
        tensors = tensors_in(args, kwargs)
        conflicting_slice = self._pass_over_slice(name, tensors)
        record = self._expected[self._next] if self._next < len(self._expected) else None
        try:
            result = self._result(record, operator, args, kwargs, tensors)
        except Exception:
            # Go on with what should have come out, so that one rehearsal finds all that is in the way.
            if not self._aligned:
                record = self._made_what_is_asked(name, args)
            if record is None or record.name != name or not record.outputs:
                raise
            self._next += 1
            if not conflicting_slice:
                self._note_conflict(record, tensors, FIXED, args)
            return self._as_expected(record, tensors)
        if self._on_shapes:  # as the traced pass did: what PyTorch runs depends on who else holds a tensor
            self._held.append((args, kwargs, result))
        outs = [result] if isinstance(result, Tensor) else tensors_in((result,))
        if not tensors and not holds_anything(outs):
            return result
        numbers = scalars_in(name, args, kwargs, tensors)
        if numbers:
            self._numbers.update(numbers)
        self._ran.append(name)
        if self._aligned and record is not None and record.name == name and len(record.outputs) != len(outs):
            self._next += 1  # a split into parts of a fixed size
            self._note_conflict(record, tensors, FIXED, args)
            return self._as_expected(record, tensors)
        record = self._align(name, outs)
        if record is None:
            unaligned = UnalignedContext(self.space, OpRecord(name, self.module), self._component, self._stays)
            rule(unaligned, args, kwargs, outs)  # may say Diverged
            self._unaligned_outs = outs
            return result
        self._next += 1
        op = DryRunContext(self.space, record, self._whole)
        if rule is not created:
            apply(rule, op, args, kwargs, outs)
        kept = [self._kept_axes(output) for output in record.outputs]
        reason = self._difference(op, rule, outs, kept, numbers)
        if reason is None:
            self._take_labels(outs, kept)
            return result
        self._note_conflict(record, tensors, reason, args, numbers)
        if record.name.endswith("_") or reason != FIXED:
            return result
        return self._as_expected(record, tensors)

    def _result(
        self,
        record: OpRecord | None,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
    ) -> Any:
        """Run an operator. What the traced pass read of numbers is read again: control flow goes the same way."""
        if not self._aligned or record is None or record.read is None or record.name != operator.name:
            return execute(operator, args, kwargs, tensors)
        return record.read.result if record.read.result is not None else self._as_expected(record, ())

    def _made_what_is_asked(self, name: str, args: Sequence[Any]) -> OpRecord | None:
        """The operator ahead in the original that made the very sizes which one on another way fails to make, if any.

        The rehearsal goes on from there.
        """
        asked = [tuple(arg) for arg in args if isinstance(arg, (list, tuple))]
        for place, record in enumerate(self._expected[self._next :], self._next):
            alike = record.module == self.module and record.name == name and len(record.outputs) == 1
            if alike and record.outputs[0].shape in asked:
                self._aligned, self._next = True, place
                return record
        return None

    @property
    def upcoming(self) -> int:
        """The number of the original's operator that is next, past the copy that a reshape may make first; -1: lost."""
        ahead = range(self._next, len(self._expected)) if self._aligned else ()
        return next((self.first + i for i in ahead if self._expected[i].name != "aten.clone"), -1)

    @cached_property
    def _stays(self) -> np.ndarray:
        """For every label, and in the end for OUTSIDE, whether no plan can remove it."""
        groups = [group.frozen for group in self._structure.groups] + [True]
        return np.append(np.array(groups)[self._structure.group_of_root[self._structure.component]], True)

    def _pass_over_slice(self, name: str, tensors: Sequence[Tensor]) -> bool:
        """PyTorch before 2.7 runs nothing where a slice takes all there is; True if that should have been less."""
        if not self._aligned or self._next + 1 >= len(self._expected):
            return False
        record, following = self._expected[self._next], self._expected[self._next + 1]
        if record.name != "aten.slice" or _same_operator(record, name) or not _same_operator(following, name):
            return False
        self._next += 1
        output = record.outputs[0]
        kept = zip(output.shape, self._kept_axes(output), strict=True)
        wanted = tuple(size if axis is None else len(axis) for size, axis in kept)
        if any(tensor.shape == wanted for tensor in tensors):
            return False
        self._note_conflict(record, tensors, FIXED)
        return True

    def _align(self, name: str, outs: Sequence[Tensor]) -> OpRecord | None:
        """The original's operator that this one repeats, if it does.

        Where a dimension of one lets PyTorch take another way, the next module that starts takes up the thread again.
        """
        if not self._aligned and self.module != self._lost_in:
            ahead = range(self._next, len(self._expected))
            again = next((i for i in ahead if self._expected[i].module == self.module), None)
            if again is not None:
                self._aligned, self._next = True, again
                self._find_labels()
        record = self._expected[self._next] if self._next < len(self._expected) else None
        if self._aligned and (record is None or not _same_operator(record, name) or len(record.outputs) != len(outs)):
            self._aligned, self._lost_in = False, self.module
        return record if self._aligned else None

    def _find_labels(self) -> None:
        """Give the last result on the other way the labels of the original's, where dimensions of one lost them."""
        outs = self._unaligned_outs
        expected = self._expected[self._next - 1].outputs if self._next else []
        kept = [self._kept_axes(output) for output in expected]
        if len(outs) == len(kept) and all(
            self._sizes_match(out, output, axes) and self._carries(out, axes)
            for out, output, axes in zip(outs, expected, kept, strict=True)
        ):
            self._take_labels(outs, kept)

    def _take_labels(self, outs: Sequence[Tensor], kept: Sequence[Sequence[Axis]]) -> None:
        """Go on with the original's labels: dimensions of one lose theirs in reshapes, and the same array is the same.

        What was compared once is recognised at a glance from then on.
        """
        for out, expected in zip(outs, kept, strict=True):
            operand = labels_of(out)
            if any(axis is not wanted for axis, wanted in zip(operand.axes, expected, strict=True)):
                pairs = zip(operand.axes, expected, strict=True)
                axes = [self._unless_single(axis) if wanted is None else wanted for axis, wanted in pairs]
                set_labels(out, TensorLabels(axes, operand.zero, operand.origin))

    def _unless_single(self, axis: Axis) -> Axis:
        """Labels where the original has none; not those of one unit, which a reshape put on the wrong dimension."""
        if axis is None:
            return None
        units = self._component[axis]
        return None if len(units) and units[0] >= 0 and (units == units[0]).all() else axis

    def finish(self) -> None:
        """Where the shrunk model took another way than the original, it must have computed with the same operators."""
        if self._lost_in is None:
            return
        self._modules[:] = [self._lost_in]  # where to look for what stands in the way
        expected = Counter(number for record in self._expected for number in record.scalars)
        if self._numbers != expected:
            raise Diverged("it runs other operators with other factors")
        before, after = [record.name for record in self._expected], self._ran
        spared = sum((name in _PRODUCTS) for name in before) - sum((name in _PRODUCTS) for name in after)
        for name in _OF_ONE:
            if not 0 <= after.count(name) - before.count(name) <= spared:
                raise Diverged(f"which operators it runs depends on its width ({name})")
        pairs = zip_longest(_computed(before), _computed(after))
        if other := next((f"{a or 'nothing'}, {b or 'nothing'}" for a, b in pairs if a != b), None):
            raise Diverged(f"which operators it runs depends on its width ({other})")

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _kept_axes(self, output: Output) -> list[Axis]:
        return [None if axis is None else self._kept_of(axis) for axis in output.axes]

    def _kept_of(self, axis: Labels) -> Labels:
        """What the plan leaves of an axis of the original; operators share axes, with each other and with weights."""
        kept = self._kept.get(id(axis))
        if kept is None:
            kept = self._kept[id(axis)] = axis[self._keep[axis]]
        return kept

    def _sizes_match(self, out: Tensor, expected: Output, kept: Sequence[Axis]) -> bool:
        if out.dim() != len(expected.shape):
            return False
        for size, before, axis in zip(out.shape, expected.shape, kept, strict=True):
            if axis is not None and size != len(axis):
                return False
            if axis is None and size != before and self._on_shapes:
                return False
        return True

    def _difference(
        self,
        op: DryRunContext,
        rule: Rule,
        outs: Sequence[Tensor],
        kept: Sequence[Sequence[Axis]],
        numbers: tuple[float, ...],
    ) -> str | None:
        """In what an operator's result is not the original's without the removed labels."""
        if rule is not created and numbers != op.record.scalars:
            return FACTOR
        for out, expected, wanted_axes in zip(outs, op.record.outputs, kept, strict=True):
            if not self._sizes_match(out, expected, wanted_axes):
                return FIXED
            if rule is created:  # what the code makes anew has the original's labels if it has their number
                set_labels(out, TensorLabels(wanted_axes, zero="zeros" in op.name))
            elif rule in (expand, repeat):
                self._take_new_labels(op, out, wanted_axes)
            if not self._carries(out, wanted_axes):
                return "which channels it takes does not follow a cut"
        if op.met_unequal:  # PyTorch does not check all sizes when it runs on shapes
            return "which channels it takes does not follow a cut"
        return None

    def _take_new_labels(self, op: DryRunContext, out: Tensor, kept: Sequence[Axis]) -> None:
        """Give a stretched dimension the labels that it has in the original."""
        found = labels_of(out)
        axes = [w if a is None and w is not None and op.is_new(w) else a for a, w in zip(found.axes, kept, strict=True)]
        set_labels(out, TensorLabels(axes, found.zero, found.origin))

    def _carries(self, out: Tensor, kept: Sequence[Axis]) -> bool:
        """Return whether a tensor has these labels."""
        pairs = zip(labels_of(out).axes, kept, strict=True)
        return all(wanted is None or self._same_channels(axis, wanted) for axis, wanted in pairs)

    def _same_channels(self, axis: Axis, wanted: Labels) -> bool:
        """Whether these are the wanted channels, one by one: a unit may have several, and their order matters too."""
        if axis is None:  # labels of a dimension of one get lost in reshapes, where there is nothing to mix up
            units = self._component[wanted]
            inside = units[units >= 0]
            return len(inside) == 0 or bool((inside == inside[0]).all())
        return axis is wanted or np.array_equal(axis, wanted)

    def _note_conflict(
        self,
        record: OpRecord,
        inputs: Sequence[Tensor],
        reason: str,
        args: Sequence[Any] = (),
        numbers: Sequence[float] = (),
    ) -> None:
        """Note a conflict of the width behind a factor, else of what was cut from the operator's results or inputs."""
        number = self.first + self._next - 1
        cut = self._widths_behind(record, numbers) if reason == FACTOR else []
        if not cut:
            axes = (axis for output in record.outputs for axis in output.axes if axis is not None)
            cut = [axis[~self._keep[axis]] for axis in axes]
        if not any(len(labels) for labels in cut):
            cut = [self._cut_around(axis) for t in inputs for axis in labels_of(t).axes if axis is not None]
        if not any(len(labels) for labels in cut):
            # The code mixed in a size of something else, most likely a width of the module that is running.
            cut = [_cut_inside(self._session, self._keep, _by_module(self._plan.shapes), record.module)]
        asked = tuple(asked for asked in _sizes_asked_for(record, args) if asked.size != len(self._kept_of(asked.axis)))
        self.conflicts.append(Conflict(np.concatenate(cut), reason, number, record.module, asked=asked))

    def _widths_behind(self, record: OpRecord, numbers: Sequence[float]) -> list[Labels]:
        """Return what was cut of the widths from which, or from whose root, a factor was computed.

        Widths in attributes of the module come first, then those that are the factor, then those that change alike.
        """
        pairs = [(b, a) for b, a in zip(record.scalars, numbers, strict=False) if a != b and a * b > 0]
        held = []
        for slot in self._structure.attributes:
            before, after = self._plan.attributes.get(slot.path, (1, 1))
            if before != after and slot.path.rpartition(".")[0] == record.module:
                held.append((slot.labels, before, after))
        axes = {id(axis): axis for own in self._session.labels.values() for axis in own}.values()
        widths = [(axis, len(axis), int(self._keep[axis].sum())) for axis in axes if not self._keep[axis].all()]
        equal = [width for width in widths if any(_are_powers(pair, width[1:]) for pair in pairs)]
        for known in (held, equal, widths):
            ratios = ((labels, before / after) for labels, before, after in known)
            found = [labels for labels, ratio in ratios if any(_is_power(b / a, ratio) for b, a in pairs)]
            if found:
                return [labels[~self._keep[labels]] for labels in found]
        return []

    def _cut_around(self, axis: Labels) -> Labels:
        """Return what was removed beside the labels of a bisect axis: the dead labels of the same slots."""
        found = []
        for _, where in self.space.slot_ranges():
            if _meets(axis, where):
                labels = np.arange(where.start, where.stop)
                found.append(labels[~self._keep[labels]])
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _as_expected(self, record: OpRecord, inputs: Sequence[Tensor]) -> Any:
        device = next((t.device for t in inputs), torch.device("meta"))
        outs = []
        for output in record.outputs:
            kept = self._kept_axes(output)
            shape = [n if axis is None else len(axis) for n, axis in zip(output.shape, kept, strict=True)]
            out = torch.zeros(shape, dtype=output.dtype, device=device)
            set_labels(out, TensorLabels(kept))
            outs.append(out)
        return outs[0] if len(outs) == 1 else tuple(outs)


_POWERS = (1, -1, 0.5, -0.5)
"""How factors depend on widths: a mean divides by one, attention by its root."""


def _is_power(value: float, width: float) -> bool:
    return any(math.isclose(value, width**power) for power in _POWERS)


def _are_powers(factors: tuple[float, float], widths: Sequence[int]) -> bool:
    """Return whether two factors are two widths to the same power."""
    pairs = list(zip(factors, widths, strict=True))
    return any(all(math.isclose(factor, width**power) for factor, width in pairs) for power in _POWERS)


def _sizes_asked_for(record: OpRecord, args: Sequence[Any]) -> Iterator[Asked]:
    """The labelled dimensions that an operator makes whose sizes are among its arguments."""
    sizes: list[Any] = []
    axes: list[Axis] = []
    if record.name.startswith("aten.split"):
        dim = args[2] if len(args) > 2 else 0
        axes = [output.axes[dim] for output in record.outputs]
        sizes = list(args[1]) if isinstance(args[1], (list, tuple)) else [args[1]] * len(axes)
    elif record.name == "aten.slice" and len(args) > 3 and None not in args[1:4]:
        axes, sizes = [record.outputs[0].axes[args[1]]], [args[3] - args[2]]
    elif record.name in GIVEN_SIZES:
        axes, sizes = list(record.outputs[0].axes), list(next((a for a in args if isinstance(a, (list, tuple))), ()))
    for place, (axis, size) in enumerate(zip(axes, sizes, strict=False)):
        if axis is not None and type(size) is int and size >= 0:
            yield Asked(axis, place, size)


def _same_operator(record: OpRecord, name: str) -> bool:
    """Return whether an operator repeats one of the original's; a slice that takes all there is runs as an alias."""
    return name == record.name or (name, record.name) == ("aten.alias", "aten.slice")


def _computed(names: Sequence[str]) -> list[str]:
    """The operators that do not depend on PyTorch's choice of a way."""
    plain = ("aten.add" if name in _WITH_BIAS else name for name in names)
    return [name for name in plain if name not in _WAYS | _PRODUCTS | _OF_ONE]
