"""The rule context of a dry run: it propagates labels and records nothing."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from infoprune.structure.labels import OUTSIDE, Labels, LabelSpace
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels
from infoprune.structure.tracing.records import OpRecord
from infoprune.structure.tracing.rule_context import RuleContext


class Diverged(Exception):
    """The shrunk model runs other operators than the original."""


class DryRunContext(RuleContext):
    """Propagate labels and record nothing, since the trace has recorded all constraints."""

    wants_zeros = False

    def __init__(self, space: LabelSpace, record: OpRecord, whole: Container[int]) -> None:
        super().__init__(space, record, -1, [])
        self._whole = whole
        self.met_unequal = False

    def unite_all(self, axes: Sequence[Axis]) -> Axis:
        """Return one axis for all; None where one has no labels, and `met_unequal` if their lengths differ."""
        labelled = [axis for axis in axes if axis is not None]
        if not labelled or len(labelled) < len(axes):
            return None
        first = labelled[0]
        for other in labelled[1:]:
            if len(other) != len(first):
                self.met_unequal = True
            elif id(first) not in self._whole:
                worse = (first < 0) | ((first >= self._space.slots_end()) & (other >= 0))
                first = np.where(worse, other, first) if worse.any() else first
        return first

    def new_labels(self, size: int) -> Axis:
        """Return None: the dry run gives what the code makes anew the labels that it has in the original."""
        return None

    def choose(self, question: str, *ways: int) -> int:
        """Return the way that the operator took in the trace."""
        return self.record.choices.get(question, ways[0])

    def _recorded(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the trace has recorded this."""

    tie = balance = contract = freeze = cost = _recorded
    note_split = note_counted = note_heads = takes_by_place = _recorded


class UnalignedContext(DryRunContext):
    """The context of an operator that the original did not run: PyTorch takes other ways for a dimension of one.

    There is no result to compare with, so labels that meet must be of one unit, position by position. Padding meets
    labels that always stay.
    """

    def __init__(self, space: LabelSpace, record: OpRecord, component: Labels, stays: np.ndarray) -> None:
        super().__init__(space, record, {})
        self._component = component
        self._stays = stays

    def unite_all(self, axes: Sequence[Axis]) -> Axis:
        """Return one of these axes for all, which have to be of one unit at each position.

        Args:
            axes: the axes; None for axes without labels.
        """
        labelled = [axis for axis in axes if axis is not None]
        for other in labelled[1:]:
            if not self._may_meet(other, labelled[0]):
                raise Diverged(f"other channels meet in {self.record}")
        return super().unite_all(axes)

    def _may_meet(self, a: Labels, b: Labels) -> bool:
        if len(a) != len(b):
            return False
        units_a, units_b = self._component[a], self._component[b]
        padded = ((a == OUTSIDE) | (b == OUTSIDE)) & self._stays[a] & self._stays[b]
        # A dimension that the code stretches is the same everywhere, so it may meet anything as wide.
        stretched = np.maximum(units_a, units_b) >= self._space.slots_end()
        return bool((padded | stretched | (units_a == units_b)).all())

    def tie(self, rows: Labels) -> None:
        """Note rows that have to be of one unit at each position.

        Args:
            rows: (parts, positions) labels.
        """
        if (self._component[rows] != self._component[rows[:1]]).any():
            raise Diverged(f"other channels meet in {self.record}")

    def contract(self, fa: TensorLabels, a: Axis, fb: TensorLabels, b: Axis) -> None:
        """Note axes that have to be of one unit at each position.

        Args:
            fa: labels of the first operand.
            a: its axis that is summed over.
            fb: labels of the second operand.
            b: its axis that is summed over.
        """
        self.unite_all([a, b])
