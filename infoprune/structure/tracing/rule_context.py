"""`RuleContext`: what a rule knows of one operator call, and how it labels the results."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Sequence

import numpy as np
import torch

from infoprune.structure.labels import OUTSIDE, Labels, LabelSpace, distinct
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, labels_of, set_labels
from infoprune.structure.tracing.records import Contraction, OpRecord

MEETS_OTHERS = "meets an input, a constant or channels that stay"
"""Why channels stay that meet a dimension of which nothing can be removed."""

STILL_ADDS = "what is removed would still add to a sum"
"""Why channels stay that are summed over and not zero once removed."""


class RuleContext:
    """One operator call, as a rule reads it, and the methods by which the rule labels and records it."""

    wants_zeros = True
    """Whether it matters where the results are zero; a dry run looks at labels alone."""

    is_strict = False  # whether a result's axes have to be as many as its dimensions, as for rules of the user's own

    def __init__(self, space: LabelSpace, record: OpRecord, number: int, contractions: list[Contraction]) -> None:
        self._space = space
        self._whole: Container[int] = space.slot_numbers
        self.number = number
        self._contractions = contractions
        self.record = record
        self.name = record.name
        self.met: list[tuple[Sequence[Labels], Labels]] = []
        """Axes that were united, and the one that stands for them."""
        self.zeros_settled = False
        """Whether the rule has said all about where the results are zero, whatever the operands are."""
        self.carried_statistics = False
        """Whether the results depend on statistics over channels as far as the operands do."""

    @property
    def short_name(self) -> str:
        """The name without namespace and in-place mark: ``"add"`` for ``aten.add_``."""
        return self.name.rpartition(".")[2].rstrip("_")

    def label(
        self,
        tensor: torch.Tensor,
        axes: Sequence[Axis],
        zero: bool = False,
        origin: str | None = None,
        nonzero: Iterable[Axis] = (),
    ) -> None:
        """Give a result its labels; ``zero`` does not hold along the axes ``nonzero``.

        Args:
            tensor: a result of the operator.
            axes: one for each dimension; None: no channels.
            zero: whether the tensor is zero wherever a channel is removed.
            origin: name of the parameter that the tensor is another form of.
            nonzero: axes along which removed channels are not zero, whatever ``zero`` says.
        """
        if self.is_strict and len(axes) != tensor.dim():
            raise ValueError(f"it labels a result of {tensor.dim()} dimensions with {len(axes)} axes")
        labels = TensorLabels(axes, zero, origin)
        labels.nonzero = tuple(axis for axis in nonzero if axis is not None)
        set_labels(tensor, labels)

    def keep_truth(self, tensor: torch.Tensor, sources: Sequence[TensorLabels]) -> None:
        """Record that a result is true at removed units if all that it is made of is, whatever its shape.

        Args:
            tensor: a result, with its labels.
            sources: labels of the operands.
        """
        if all(source.true and source.is_true for source in sources):
            labels = labels_of(tensor)
            labels.true = tuple(axis for axis in labels.axes if axis is not None and not self.is_new(axis))

    def unite_all(self, axes: Sequence[Axis]) -> Axis:
        """Unite the labels of axes that meet position by position; return one axis for all.

        Where a labelled axis meets one without labels (an input, a constant of that size) its labels must stay, and
        nothing of the result can be removed.

        Args:
            axes: Labels of dimensions of equal length, (length,) each; None where a dimension has no labels.
        """
        labelled = [axis for axis in axes if axis is not None]
        if not labelled:
            return None
        if len(labelled) < len(axes):
            self.freeze_all(labelled, MEETS_OTHERS)
            return None
        first = labelled[0]
        for other in labelled[1:]:
            first = self._unite(first, other)
        if len(labelled) > 1:
            self.met.append((labelled, first))
            self._space.note_met(labelled)
        return first

    def same_channels(self, axis: Axis, other: Labels) -> bool:
        """Return whether a dimension holds the same channels as another one, perhaps more often.

        Args:
            axis: Labels of a dimension, or None.
            other: Labels of the other dimension.
        """
        return axis is not None and self._space.same_channels(axis, other)

    def _unite(self, a: Labels, b: Labels) -> Labels:
        if a is b:
            return a
        if id(a) in self._whole and id(b) in self._whole:
            self._space.unite(a, b, self.number)
            return a
        if np.array_equal(a, b):
            return a
        inside_a, inside_b = a != OUTSIDE, b != OUTSIDE
        both = inside_a & inside_b
        if both.all():
            self._space.unite(a, b, self.number)
        else:
            self._space.unite(a[both], b[both], self.number)
            self.freeze(a[inside_a & ~inside_b], "meets padding, or channels that stay")
            self.freeze(b[inside_b & ~inside_a], "meets padding, or channels that stay")
        # Labels with a slot speak for those without, so that a kept or removed index can be told from its label alone.
        worse = (a == OUTSIDE) | ((a >= self._space.slots_end()) & inside_b)
        return np.where(worse, b, a) if worse.any() else a

    def tie(self, rows: Labels) -> None:
        """Unite the labels of each column of ``(parts, positions)``.

        Args:
            rows: (parts, positions) labels.
        """
        if len(rows) < 2:
            return
        flat, first = rows[1:].reshape(-1), np.broadcast_to(rows[0], rows[1:].shape).reshape(-1)
        if rows.min(initial=0) > OUTSIDE:
            self._space.unite(first, flat, self.number)
            return
        inside = (flat != OUTSIDE) & (first != OUTSIDE)
        self._space.unite(first[inside], flat[inside], self.number)
        self.freeze(flat[~inside], "is tied to padding")
        self.freeze(first[~inside], "is tied to padding")

    def balance(self, parts: Labels) -> None:
        """Require all ``parts`` (parts, positions) to lose the same number; which go together is chosen later.

        Args:
            parts: (parts, positions) labels.
        """
        if (parts == OUTSIDE).any():
            self.tie(parts)
        elif len(parts) > 1:
            self._space.balance(parts, self.number)

    def contract(self, fa: TensorLabels, a: Axis, fb: TensorLabels, b: Axis) -> None:
        """Sum over the products of two axes; exact where a removed index adds nothing.

        Args:
            fa: labels of the first factor.
            a: its axis that is summed over.
            fb: labels of the second factor.
            b: its axis that is summed over.
        """
        if a is None and b is None:
            return
        if a is not None and b is not None and not (fa.zero_along(a) or fb.zero_along(b)):
            self.freeze_all([a, b], STILL_ADDS)
        self.unite_all([a, b])

    def freeze(self, axis: Axis, reason: str | None) -> None:
        """Freeze the labels of an axis; a reason of None says that they are no channels at all.

        Args:
            axis: the labels; None: there is nothing to freeze.
            reason: why, in words for the user.
        """
        if axis is None:
            return
        axis = distinct(axis)
        inside = axis if id(axis) in self._whole else axis[axis != OUTSIDE]
        if len(inside):
            self._space.freeze(inside, reason, self.number)

    def freeze_all(self, axes: Sequence[Axis], reason: str | None) -> None:
        """Freeze several axes.

        Args:
            axes: see `freeze`.
            reason: see `freeze`.
        """
        for axis in axes:
            self.freeze(axis, reason)

    def new_labels(self, size: int) -> Axis:
        """Return labels for a tensor that the model's code makes itself.

        Args:
            size: Length of the dimension.
        """
        return self._space.new_labels(size)

    def is_new(self, axis: Labels) -> bool:
        """Return whether these are labels of a tensor that the model's code makes itself.

        Args:
            axis: (n,) labels.
        """
        return bool((axis >= self._space.slots_end()).all())

    def choose(self, question: str, *ways: int) -> int:
        """Take the first of several ways, unless another is requested; record it, so that a dry run repeats it.

        Args:
            question: A name for the choice, unique within the operator.
            ways: The ways to choose from, the preferred one first.

        Returns:
            One of the ways.
        """
        value = ways[self._space.ways.get(self.number, 0) % len(ways)]
        self.record.ways = max(self.record.ways, len(ways))
        self.record.choices[question] = value
        return value

    def note_split(self, counts: Sequence[int]) -> None:
        """Record into how many nested parts the operator splits a dimension.

        Args:
            counts: Numbers of parts, the outermost first, and last the width of a part.
        """
        self.record.splits.append(tuple(counts))

    def note_counted(self, labels: Labels) -> None:
        """Record that a number among the operator's arguments counts these labels (groups, say).

        Args:
            labels: One label for each thing that the number counts.
        """
        self.record.counted.append(labels)

    @property
    def head_splits(self) -> Collection[tuple[int, int]]:
        """Return the numbers and widths of the parts that this operator's module splits dimensions into."""
        return self._space.head_splits.get(self.record.module, ())

    def note_heads(self, labels: Labels) -> None:
        """Note the labels of the parts (attention heads) of the operator's module.

        Args:
            labels: One label for each head.
        """
        self._space.head_labels.setdefault(self.record.module, labels)
        if (read := self._space.head_inputs.get(self.record.module)) is not None:
            self._space.unite(np.repeat(labels, len(read) // len(labels)), read, self.number)

    def takes_by_place(self, axis: Labels) -> None:
        """Record that this operator takes channels by position, so that probe plans cut each of them.

        Args:
            axis: Labels of that dimension.
        """
        self.record.by_place |= bool(((axis >= 0) & (axis < self._space.slots_end())).any())

    def are_filters(self, axis: Axis) -> bool:
        """Return whether these are the labels of a parameter's first dimension.

        Args:
            axis: (n,) labels, or None.
        """
        slot = None if axis is None or not (axis >= 0).all() else self._space.slot_of(int(axis[0]))
        return slot is not None and slot.dim == 0

    def is_of_buffer(self, axis: Axis) -> bool:
        """Return whether these are labels of a buffer, which has no filters to choose among.

        Args:
            axis: (n,) labels, or None.
        """
        slot = None if axis is None or not len(axis) else self._space.slot_of(int(axis[0]))
        return slot is not None and slot.tensor not in self._space.parameters

    def cost(self, kind: str, kernel: str | None, filters: Axis, dims: Iterable[tuple[Axis, int]]) -> None:
        """Count this call's multiply-accumulates: the product of all its dimensions, given as (labels, size).

        Args:
            kind: ``"conv"``, ``"linear"`` or ``"attention"``, for tables of costs.
            kernel: name of the parameter that is the kernel; None: the operator has none.
            filters: axis of the kernel's filters, None if it has none.
            dims: every dimension of the product: its labels (None: a fixed size) and its size.
        """
        dims = list(dims)
        times = math.prod(size for axis, size in dims if axis is None)
        sides = tuple(axis for axis, _ in dims if axis is not None)
        self._contractions.append(Contraction(kernel or "", self.record.module, kind, times, filters, sides))
