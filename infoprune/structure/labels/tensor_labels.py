"""The labels of a tensor's dimensions, kept beside the tensor while the model is traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import local
from typing import NamedTuple, TypeAlias

import torch

from infoprune.structure.labels.components import Labels, share_labels

Axis: TypeAlias = "Labels | None"
"""The labels along one dimension of a tensor, or None where nothing of it can be removed."""


class Statistic(NamedTuple):
    """A statistic over channels that a tensor depends on: a mean over ``axis``, taken by operator ``op``."""

    axis: Labels
    reason: str
    op: int


_passes = count(1)


class _Pass(local):
    """The pass that a thread runs, or ran last.

    Attributes:
        number: of the pass.
        depth: how many passes run within each other.
    """

    number = 0
    depth = 0


_current = _Pass()


@contextmanager
def new_pass() -> Iterator[None]:
    """Let no tensor have labels at the start of the block: not even one that code has kept since an earlier pass.

    The labels of the block are valid until the next one starts; a pass within a pass leaves those of the outer one.

    Example:
        >>> import numpy as np
        >>> kept = torch.zeros(2)
        >>> with new_pass():
        ...     set_labels(kept, TensorLabels((np.arange(2),)))
        >>> labels_of(kept).labelled
        True
        >>> with new_pass():
        ...     labels_of(kept).labelled
        False
    """
    outer, _current.number = _current.number, next(_passes)
    _current.depth += 1
    try:
        yield
    finally:
        _current.depth -= 1
        if _current.depth:
            _current.number = outer


class Storage:
    """The labels' shared state of all tensors that are views of one memory.

    Attributes:
        zero: nothing was written there that is not zero at removed channels.
        nonnegative: nothing was written there that may be below zero.
        written: something was written there after it was made.
    """

    __slots__ = ("made_in", "nonnegative", "written", "zero")

    def __init__(self) -> None:
        self.made_in = _current.number
        self.zero = True
        self.nonnegative = True
        self.written = False


NOWHERE: frozenset[int] = frozenset()
"""No dimensions, as one object for all tensors: thousands of empty sets would keep the garbage collector busy."""


class TensorLabels:
    """The labels of one tensor.

    Attributes:
        axes: for each dimension the label of each index, or None. Every tensor is a full rectangle, so removing a unit
            removes whole indices of whole dimensions, and one label per index says it all.
        zero: the entries of a removed unit are zero once its parameters are zeroed, along each labelled dimension.
            True for parameters, kept by ReLU, lost by sigmoid. It decides where summing over removed channels is exact.
            It ends for all views of a storage when one of them is overwritten with something else.
        nonzero: labels for which that is not so: rows to which a linear layer adds its bias.
        origin: where this tensor is computed from the model's own tensors alone, the name of the largest of them.
        base: the labels of the tensor that this one is computed from by powers, products and statistics; by default
            these labels themselves.
        degree: scaling that tensor by s scales this one by s to this power; None if that is not so.
        statistics: statistics over channels on the way to this tensor that have not cancelled out yet.
        scaled_out: of a normalised tensor, the labels of the one that its scale cancels out of.
        number: the number that the code has made a meta tensor of.
        true: labels of dimensions along which it is true where a unit is removed, as ``x == 0`` of an activation is.
        joined: dimensions, counted from the last, along which several activations lie one behind another.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_nonnegative",
        "_zero",
        "axes",
        "degree",
        "joined",
        "made_in",
        "nonzero",
        "number",
        "origin",
        "scaled_out",
        "statistics",
        "storage",
        "true",
    )

    def __init__(self, axes: Sequence[Axis], zero: bool = False, origin: str | None = None) -> None:
        self.axes = tuple(axes)
        self.made_in = _current.number
        self._zero = zero
        self._nonnegative = False
        self.origin = origin
        self.degree: float | None = 1.0
        self.statistics: tuple[Statistic, ...] = ()
        self._base: TensorLabels | None = None
        self.nonzero: tuple[Labels, ...] = ()
        self.storage: Storage | None = None
        self.number: float | None = None
        self.true: tuple[Labels, ...] = ()
        self.joined = NOWHERE
        self.scaled_out: TensorLabels | None = None

    @property
    def base(self) -> TensorLabels:
        """Return the statistic whose powers ``degree`` counts."""
        return self._base or self

    def depend_on(self, base: TensorLabels, degree: float | None, statistics: tuple[Statistic, ...]) -> None:
        """Record that this tensor was computed from another one; see the class.

        Args:
            base: labels of the other tensor.
            degree: the power of its scale with which this tensor grows; None if that is unknown.
            statistics: the statistics over channels that this tensor depends on.
        """
        self._base, self.degree, self.statistics = base, degree, statistics

    @property
    def tells(self) -> bool:
        """Return whether a cut would show in the tensor."""
        return self.labelled or bool(self.statistics)

    def be_zero_like(self, other: TensorLabels) -> None:
        """Record that this tensor is zero wherever another one is.

        Args:
            other: labels of the other tensor.
        """
        self._zero, self.nonzero = other.zero, other.nonzero

    @property
    def zero(self) -> bool:
        """Return whether the entries of removed units are zero in this tensor."""
        return self._zero and (self.storage is None or self.storage.zero)

    @property
    def nonnegative(self) -> bool:
        """Return whether no entry is below zero, whatever is removed."""
        return self._nonnegative and (self.storage is None or self.storage.nonnegative)

    def note_nonnegative(self) -> None:
        """Record that no entry is below zero."""
        self._nonnegative = True

    def zero_along(self, axis: Axis) -> bool:
        """Return whether the entries of removed units are zero along one of the tensor's dimensions.

        Args:
            axis: Labels of one of the tensor's dimensions, or None.
        """
        if axis is None or not self.zero or not self.nonzero:
            return self.zero
        return not overlap(axis, self.nonzero)

    def true_along(self, axis: Labels) -> bool:
        """Return whether a tensor of truth values is true at removed units along one of its dimensions.

        Args:
            axis: Labels of one of the tensor's dimensions.
        """
        return any(labels is axis for labels in self.true) and not (self.storage is not None and self.storage.written)

    @property
    def is_true(self) -> bool:
        """Return whether a tensor of truth values is true at removed units along all of its dimensions."""
        return all(axis is None or self.true_along(axis) for axis in self.axes)

    @property
    def labelled(self) -> bool:
        """Return whether anything of the tensor could be removed."""
        return any(axis is not None for axis in self.axes)


def overlap(axis: Labels, others: Sequence[Labels]) -> bool:
    """Return whether an axis has labels in common with any of several others.

    Args:
        axis: (n,) labels.
        others: arrays of labels.
    """
    return any(labels is axis for labels in others) or any(share_labels(axis, labels) for labels in others)


_ATTRIBUTE = "_infoprune_flow"
_OF_STORAGE = "_infoprune_storage"


def labels_of(tensor: torch.Tensor) -> TensorLabels:
    """Return the tensor's labels; a tensor that was never labelled has none along any dimension.

    Args:
        tensor: Any tensor of a traced pass.
    """
    found: TensorLabels | None = tensor.__dict__.get(
        _ATTRIBUTE
    )  # in half the time of getattr; a trace asks thousands of times
    # A tensor resized in place by an operator we do not know must not keep labels of its old shape.
    if found is None or found.made_in != _current.number or len(found.axes) != tensor.dim():
        return TensorLabels((None,) * tensor.dim())
    return found


def set_labels(tensor: torch.Tensor, found: TensorLabels) -> None:
    """Attach labels to a tensor.

    Args:
        tensor: any tensor; its values do not matter.
        found: one axis for each of its dimensions.
    """
    found.made_in, found.storage = _current.number, _storage_of(tensor)
    tensor.__dict__[_ATTRIBUTE] = found


def number_in(tensor: torch.Tensor) -> float | None:
    """Return the number that a tensor without dimensions holds.

    On the meta device it is known if the tensor was made of a number. None: unknown or complex, or the tensor has
    dimensions.

    Args:
        tensor: any tensor, on the meta device or not.
    """
    if tensor.dim() or tensor.is_complex():
        return None
    return labels_of(tensor).number if tensor.is_meta else float(tensor)


def note_written(tensor: torch.Tensor) -> None:
    """Record that an operator has overwritten a tensor; its labels say whether zeros remain.

    Args:
        tensor: the operand, with the labels of its new content.
    """
    found = labels_of(tensor)
    storage = found.storage or _storage_of(tensor)
    if storage is not None:
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        storage.written = True
        storage.zero = found._zero and not found.nonzero and (whole or storage.zero)
        storage.nonnegative = found._nonnegative and (whole or storage.nonnegative)


def clear_labels(tensor: torch.Tensor) -> None:
    """Remove the labels from a tensor.

    Args:
        tensor: any tensor; one without labels stays as it is.
    """
    if tensor.__dict__.pop(_ATTRIBUTE, None) is not None and tensor.layout is torch.strided:
        tensor.untyped_storage().__dict__.pop(_OF_STORAGE, None)


def _storage_of(tensor: torch.Tensor) -> Storage | None:
    """Return the shared state of all tensors on one memory; as an attribute of the storage it lives as long."""
    if tensor.layout is not torch.strided:
        return None
    attributes = tensor.untyped_storage().__dict__
    found: Storage | None = attributes.get(_OF_STORAGE)
    if found is None or found.made_in != _current.number:
        found = attributes[_OF_STORAGE] = Storage()
    return found
