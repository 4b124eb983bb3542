"""The comparison in a dry run: each operator's result against the original's without the removed labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, labels_of, set_labels
from infoprune.structure.tracing.execution import Operator, execute
from infoprune.structure.tracing.options import Options, changed_numbers, options_in
from infoprune.structure.tracing.records import OpRecord, Output
from infoprune.structure.tracing.rules import Rule, tensors_in
from infoprune.structure.tracing.rules.elementwise import created
from infoprune.structure.tracing.scalars import scalars_in
from infoprune.structure.tracing.tracer import Tracer, apply, holds_anything
from infoprune.structure.validation.alignment import Alignment
from infoprune.structure.validation.conflict import ARGUMENT, COMPUTED, FACTOR, FIXED, MISPLACED, Asked, Conflict
from infoprune.structure.validation.dry_run_context import Diverged, DryRunContext, UnalignedContext
from infoprune.structure.validation.operators import STRETCHING, differing_operators, same_operator, sizes_asked_for
from infoprune.structure.validation.planned_cut import PlannedCut


class ComparedPass(Tracer):
    """Repeat a traced pass on the shrunk model and compare every operator's result.

    Args:
        cut: the plan that the shrunk model follows.
        traced: the pass of the unpruned model.

    Attributes:
        conflicts: what stands in the plan's way.
    """

    def __init__(self, cut: PlannedCut, traced: Tracer) -> None:
        super().__init__(traced.space, traced._names, traced.first, traced.seed)
        self.found = traced.found
        self.conflicts: list[Conflict] = []
        self._cut = cut
        self._expected = traced.records
        self._unaligned_outs: Sequence[Tensor] = ()
        self._ran: list[tuple[str, tuple[float, ...]]] = []  # operators and their factors
        self._component = np.append(cut.structure.component, -1)
        self._alignment = Alignment(traced.records, cut)
        self._on_shapes = cut.session.on_shapes
        self._held: list[Any] = []

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, compare its result with the original's, and give it the original's labels.

        Where they differ, the conflict is recorded and the pass goes on with the expected result, so that one dry run
        finds all conflicts.

        Args:
            operator: the operator, with its rule.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Returns:
            What the operator returns; after a conflict, what it should have returned.
        """
        rule, name, alignment = operator.rule, operator.name, self._alignment
        tensors = tensors_in(args, kwargs)
        conflicting_slice = self._pass_over_slice(name, tensors)
        alignment.pass_over_copy(name)
        record = alignment.record
        try:
            result = self._result(record, operator, args, kwargs, tensors)
        except Exception:
            # Code that asks for a size of the original fails here; the pass goes on with the result that it expects.
            if not alignment.holds:
                record = alignment.find_asked(name, args, self.module)
            if record is None or not same_operator(record, name) or not record.outputs:
                raise
            alignment.next += 1
            if not conflicting_slice:
                self._note_conflict(record, tensors, FIXED, args)
            return self._as_expected(record, tensors)
        if self._on_shapes:  # as the traced pass did: what PyTorch runs depends on who else holds a tensor
            self._held.append((args, kwargs, result))
        outs = [result] if isinstance(result, Tensor) else tensors_in((result,))
        if not tensors and not holds_anything(outs):
            return result
        numbers, options = scalars_in(name, args, kwargs, tensors), options_in(name, args, kwargs)
        self._ran.append((name, numbers))
        if alignment.holds and record is not None and same_operator(record, name) and len(record.outputs) != len(outs):
            alignment.next += 1  # a split into parts of a fixed size
            self._note_conflict(record, tensors, FIXED, args)
            return self._as_expected(record, tensors)
        if not alignment.holds and alignment.find_again(name, self.module):
            self._find_labels()
        alignment.check(name, outs, self.module)
        record = alignment.record
        if record is None or not alignment.holds:
            unaligned = UnalignedContext(
                self.space, OpRecord(name, self.module), self._component, self._cut.structure.stays
            )
            rule(unaligned, args, kwargs, outs)  # may raise Diverged
            self._unaligned_outs = outs
            return result
        alignment.next += 1
        op = DryRunContext(self.space, record, self._cut.slots)
        if rule is not created:
            apply(rule, op, args, kwargs, outs)
        kept = [self._cut.kept_of(output) for output in record.outputs]
        reason = self._difference(op, rule, outs, kept, numbers, options)
        if reason is None:
            self._take_labels(outs, kept)
            return result
        misfits = self._misfits(outs[0], record) if rule is created and reason == FIXED else ()
        factors = list(zip(record.scalars, numbers, strict=False))
        changed = factors if reason == FACTOR else changed_numbers(record.options, options)
        self._note_conflict(record, tensors, reason, args, changed, misfits)
        # A result of the right size is used as it is, and one in place is held by others already.
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
        """Run an operator; reuse the numbers that the traced pass read, so that control flow is the same."""
        if not self._alignment.holds or record is None or record.read is None or record.name != operator.name:
            return execute(operator, args, kwargs, tensors)
        result = record.read.result
        if isinstance(result, Tensor) and len(record.outputs) == 1:
            return self._cut.kept_numbers(result, record.outputs[0].axes)
        return result if result is not None else self._as_expected(record, ())

    @property
    def upcoming(self) -> int:
        """Return the number of the original's next operator, past a reshape's copy; -1 if unknown."""
        place = self._alignment.upcoming
        return self.first + place if place >= 0 else -1

    def _pass_over_slice(self, name: str, tensors: Sequence[Tensor]) -> bool:
        """Skip a slice that PyTorch does not run; return whether it should have taken less than all, a conflict."""
        record = self._alignment.pass_over_slice(name)
        if record is None or any(tensor.shape == self._alignment.sizes(record) for tensor in tensors):
            return False
        self._note_conflict(record, tensors, FIXED)
        return True

    def _find_labels(self) -> None:
        """Give the last result before the comparison starts again the original's labels, if its sizes fit."""
        outs = self._unaligned_outs
        place = self._alignment.next
        expected = self._expected[place - 1].outputs if place else []
        kept = [self._cut.kept_of(output) for output in expected]
        if len(outs) == len(kept) and all(
            self._sizes_match(out, output, axes) and self._carries(out, axes)
            for out, output, axes in zip(outs, expected, kept, strict=True)
        ):
            self._take_labels(outs, kept)

    def _take_labels(self, outs: Sequence[Tensor], kept: Sequence[Sequence[Axis]]) -> None:
        """Replace the labels of a result by the original's.

        Reshapes drop the labels of dimensions of one; and labels that were compared once are recognised by identity.
        """
        for out, expected in zip(outs, kept, strict=True):
            operand = labels_of(out)
            if any(axis is not wanted for axis, wanted in zip(operand.axes, expected, strict=True)):
                pairs = zip(operand.axes, expected, strict=True)
                axes = [self._unless_single(axis) if wanted is None else wanted for axis, wanted in pairs]
                set_labels(out, TensorLabels(axes, operand.zero, operand.origin))

    def _unless_single(self, axis: Axis) -> Axis:
        """Return labels where the original has none, except those of a single unit, which a reshape may misplace."""
        if axis is None:
            return None
        units = self._component[axis]
        return None if len(units) and units[0] >= 0 and (units == units[0]).all() else axis

    def finish(self) -> None:
        """Check that a pass which ran other operators than the original still computed the same.

        Raises:
            Diverged: it did not.
        """
        if self._alignment.lost_in is None:
            return
        self._modules[:] = [self._alignment.lost_in]  # where to look for what stands in the way
        expected = Counter(number for record in self._expected for number in record.scalars)
        if Counter(number for _, numbers in self._ran for number in numbers) != expected:
            raise Diverged("it runs other operators with other factors")
        if other := differing_operators([record.name for record in self._expected], [name for name, _ in self._ran]):
            raise Diverged(f"which operators it runs depends on its width ({other})")

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _sizes_match(self, out: Tensor, expected: Output, kept: Sequence[Axis]) -> bool:
        if out.dim() != len(expected.shape):
            return False
        for size, before, axis in zip(out.shape, expected.shape, kept, strict=True):
            if size != len(axis) if axis is not None else self._on_shapes and size != before:
                return False
        return True

    def _difference(
        self,
        op: DryRunContext,
        rule: Rule,
        outs: Sequence[Tensor],
        kept: Sequence[Sequence[Axis]],
        numbers: tuple[float, ...],
        options: Options | None,
    ) -> str | None:
        """Return how an operator's result differs from the original's without the removed labels; None if not."""
        other_factors = numbers != op.record.scalars
        if rule is not created and other_factors:
            return FACTOR
        for out, expected, wanted_axes in zip(outs, op.record.outputs, kept, strict=True):
            if not self._sizes_match(out, expected, wanted_axes):
                return FIXED
            if rule is created:  # what the code makes anew has the original's labels if it has their number
                set_labels(out, TensorLabels(wanted_axes, zero="zeros" in op.name))
            elif rule in STRETCHING:
                self._take_new_labels(op, out, wanted_axes)
            if not self._carries(out, wanted_axes):
                return MISPLACED
        # PyTorch does not check all sizes when it runs on shapes.
        if op.met_unequal:
            return MISPLACED
        if other_factors:  # what a new tensor is filled with
            return FACTOR
        return ARGUMENT if None not in (options, op.record.options) and options != op.record.options else None

    def _misfits(self, out: Tensor, record: OpRecord) -> list[Labels]:
        """Return the dimensions in which a new tensor has another size than the plan leaves."""
        axes = record.outputs[0].axes
        if out.dim() != len(axes):
            return []
        sized = [(axis, size) for axis, size in zip(axes, out.shape, strict=True) if axis is not None]
        return [axis for axis, size in sized if size != len(self._cut.kept(axis))]

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
        """Return whether these are the wanted channels, one by one: the order within a unit matters too."""
        if axis is wanted or (axis is not None and np.array_equal(axis, wanted)):
            return True
        # Labels of a dimension of one get lost in reshapes, where there is nothing to mix up; what is left are none, or
        # those of a dimension that the code stretches, as it does a batch.
        if axis is None or (len(axis) and axis.min() >= self.space.slots_end()):
            units = self._component[wanted]
            inside = units[units >= 0]
            return len(inside) == 0 or bool((inside == inside[0]).all())
        return False

    def _note_conflict(
        self,
        record: OpRecord,
        inputs: Sequence[Tensor],
        reason: str,
        args: Sequence[Any] = (),
        changed: Sequence[tuple[float, float]] = (),
        only: Sequence[Labels] = (),
    ) -> None:
        """Record a conflict of the width behind a number, else of labels cut from the operator's results or inputs."""
        number = self.first + self._alignment.next - 1
        cut: list[Labels] = []
        if reason in COMPUTED:
            cut = self._cut.widths_behind(changed, record.module, ratios=reason == FACTOR)
        if not cut:
            cut = [self._cut.removed(axis) for axis in only or record.axes]
        if not any(len(labels) for labels in cut):
            axes = (axis for t in inputs for axis in labels_of(t).axes if axis is not None)
            cut = [self._cut.removed_around(axis) for axis in axes]
        if not any(len(labels) for labels in cut):
            # The code mixed in another size, most likely a width of the module that is running.
            cut = [self._cut.removed_inside(record.module)]
        self.conflicts.append(
            Conflict(np.concatenate(cut), reason, number, record.module, asked=self.asked(record, args))
        )

    def asked(self, record: OpRecord, args: Sequence[Any]) -> tuple[Asked, ...]:
        """Return the dimensions for which the code asks an operator for another size than the plan leaves.

        Args:
            record: the operator in the traced pass.
            args: its positional arguments now.
        """
        return tuple(asked for asked in sizes_asked_for(record, args) if asked.size != len(self._cut.kept(asked.axis)))

    def _as_expected(self, record: OpRecord, inputs: Sequence[Tensor]) -> Any:
        device = next((t.device for t in inputs), torch.device("meta"))
        outs = []
        for output in record.outputs:
            kept = self._cut.kept_of(output)
            shape = [n if a is None else len(a) for n, a in zip(output.shape, kept, strict=True)]
            out = torch.zeros(shape, dtype=output.dtype, device=device)
            set_labels(out, TensorLabels(kept))
            outs.append(out)
        return outs[0] if len(outs) == 1 else tuple(outs)
