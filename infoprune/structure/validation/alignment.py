"""Alignment: which operator of the traced pass one of the shrunk model's repeats.

Both run the same code, so the operators come in the same order. A dimension that is down to a single channel lets
PyTorch move numbers and multiply matrices by other operators; there the alignment is lost, and found again where the
two passes meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.tracing.records import OpRecord
from infoprune.structure.validation.operators import computes, same_operator
from infoprune.structure.validation.planned_cut import PlannedCut


class Alignment:
    """The place in a traced pass that a repeated pass has reached.

    Args:
        records: the operators of the traced pass.
        cut: the plan that the repeated pass follows.

    Attributes:
        next: the place of the operator that should run next.
        holds: whether the two passes run the same operators at present.
        lost_in: the module in which they last did not; None if they always did.
    """

    def __init__(self, records: Sequence[OpRecord], cut: PlannedCut) -> None:
        self.next = 0
        self.holds = True
        self.lost_in: str | None = None
        self._records = records
        self._cut = cut

    @property
    def record(self) -> OpRecord | None:
        """The operator that should run next; None past the end."""
        return self._records[self.next] if self.next < len(self._records) else None

    @property
    def upcoming(self) -> int:
        """The place of the next operator, past a reshape's copy; -1 if unknown."""
        ahead = range(self.next, len(self._records)) if self.holds else ()
        return next((i for i in ahead if self._records[i].name != "aten.clone"), -1)

    def sizes(self, record: OpRecord) -> tuple[int, ...]:
        """Return the sizes that the plan leaves of an operator's first result.

        Args:
            record: an operator of the traced pass.
        """
        output = record.outputs[0]
        pairs = zip(output.shape, self._cut.kept_of(output), strict=True)
        return tuple(size if axis is None else len(axis) for size, axis in pairs)

    def pass_over_slice(self, name: str) -> OpRecord | None:
        """Skip a slice that takes a whole dimension, which PyTorch before 2.7 does not run.

        Args:
            name: the operator that the shrunk model runs.

        Returns:
            The slice in the traced pass; None if nothing was skipped.
        """
        if not self.holds or self.next + 1 >= len(self._records) or self._records[self.next].name != "aten.slice":
            return None
        pair = self._records[self.next : self.next + 2]
        if same_operator(pair[0], name) or not same_operator(pair[1], name):
            return None
        self.next += 1
        return pair[0]

    def pass_over_copy(self, name: str) -> None:
        """Skip the copy that a reshape makes in the traced pass only: a single channel needs none.

        Args:
            name: the operator that the shrunk model runs.
        """
        following = self._records[self.next : self.next + 2] if self.holds and name == "aten.view" else ()
        if [record.name for record in following] == ["aten.clone", "aten._unsafe_view"]:
            self.next += 1

    def check(self, name: str, outs: Sequence[Tensor], module: str) -> None:
        """Lose the alignment if an operator that ran is not the next one of the traced pass.

        Args:
            name: the operator.
            outs: its results.
            module: the path of the module that ran it.
        """
        record = self.record
        if self.holds and (
            record is None
            or not same_operator(record, name)
            or len(record.outputs) != len(outs)
            or self._reordered(record, outs)
        ):
            self.holds, self.lost_in = False, module

    def find_again(self, name: str, module: str) -> bool:
        """Go on from where the two passes meet; return whether they do.

        They meet at the first operator of another module, and at the next one that computes: in whichever way PyTorch
        moves numbers and multiplies matrices, the other operators come in the same order.

        Args:
            name: an operator that ran while the alignment was lost.
            module: the path of the module that ran it.
        """
        ahead = range(self.next, len(self._records))
        if module != self.lost_in:
            place = next((i for i in ahead if self._records[i].module == module), None)
        else:
            place = next((i for i in ahead if computes(self._records[i].name)), None)
            if place is not None and (self._records[place].module, self._records[place].name) != (module, name):
                place = None
        if place is None:
            return False
        self.holds, self.next = True, place
        return True

    def find_asked(self, name: str, args: Sequence[Any], module: str) -> OpRecord | None:
        """Go on from the next operator of this kind and module that made the sizes asked for here.

        Where the shrunk model runs other operators, one that fails may still be asked for the sizes of the original.

        Args:
            name: the operator that the shrunk model runs.
            args: its positional arguments, among them the sizes asked for.
            module: path of the module that runs it.

        Returns:
            The operator in the traced pass; None if there is none.
        """
        asked = [tuple(arg) for arg in args if isinstance(arg, (list, tuple))]
        for place, record in enumerate(self._records[self.next :], self.next):
            alike = record.module == module and record.name == name and len(record.outputs) == 1
            if alike and record.outputs[0].shape in asked:
                self.holds, self.next = True, place
                return record
        return None

    def _reordered(self, record: OpRecord, outs: Sequence[Tensor]) -> bool:
        """Return whether dimensions came out in another order, of which the plan leaves one with a single channel.

        ``einsum`` orders a dimension of one as if the operand lacked it.
        """
        if record.name != "aten.permute":
            return False
        sizes = self.sizes(record)
        narrowed = any(size == 1 < before for size, before in zip(sizes, record.outputs[0].shape, strict=True))
        return narrowed and tuple(outs[0].shape) != sizes and sorted(outs[0].shape) == sorted(sizes)
