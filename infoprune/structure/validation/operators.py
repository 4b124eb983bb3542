"""Match the operators of two passes, and find the sizes that operators are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from infoprune.structure.labels.tensor_labels import Axis
from infoprune.structure.tracing.options import GIVEN_SIZES
from infoprune.structure.tracing.records import OpRecord
from infoprune.structure.tracing.rules import joining, movement, scattering, shape
from infoprune.structure.validation.conflict import Asked

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

_OTHER_NAMES = {
    ("aten.alias", "aten.slice"),  # a slice that takes all there is
    ("aten.view", "aten._unsafe_view"),  # a reshape that has nothing to copy
}


STRETCHING = frozenset({
    movement.along_one_dimension, movement.index, movement.repeat, joining.cat, joining.stack, scattering.gather,
    shape.expand,
})  # fmt: skip
"""Rules of operators that can stretch a dimension of one, by which new labels come up."""


def sizes_asked_for(record: OpRecord, args: Sequence[Any]) -> Iterator[Asked]:
    """Yield the labelled dimensions that an operator makes whose sizes are among its arguments.

    Args:
        record: the operator in the traced pass.
        args: its positional arguments in the shrunk model.
    """
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


_REFUSED = re.compile(
    r"shape '\[(?P<all>[-\d, ]+)\]' is invalid"
    r"|unflatten: Provided sizes \[(?P<some>[-\d, ]+)\] don't multiply up to the size of dim (?P<dim>\d+)"
)


def sizes_refused(message: str, rank: int) -> list[int]:
    """Return the sizes for which a reshape was asked that failed before an operator ran.

    Args:
        message: PyTorch's.
        rank: number of dimensions of what it would have made.

    Returns:
        One size for each dimension, -1 where none was asked for; empty if the message is another one.

    Example:
        >>> sizes_refused("unflatten: Provided sizes [5, 8] don't multiply up to the size of dim 1 (32)", 4)
        [-1, 5, 8, -1]
    """
    found = _REFUSED.match(message)
    if found is None:
        return []
    sizes = [int(size) for size in (found["all"] or found["some"]).split(",")]
    before = int(found["dim"] or 0)
    return [*[-1] * before, *sizes, *[-1] * (rank - before - len(sizes))]


def same_operator(record: OpRecord, name: str) -> bool:
    """Return whether an operator repeats one of the traced pass, perhaps under another name.

    Args:
        record: an operator of the traced pass.
        name: the operator that runs now.
    """
    return name == record.name or (name, record.name) in _OTHER_NAMES


def computes(name: str) -> bool:
    """Return whether an operator computes the same at every width, neither moving numbers nor multiplying matrices.

    Args:
        name: the operator, without its overload.

    Example:
        >>> computes("aten.relu"), computes("aten.permute"), computes("aten.bmm")
        (True, False, False)
    """
    return name in _WITH_BIAS or name not in _WAYS | _PRODUCTS | _OF_ONE


def differing_operators(before: Sequence[str], after: Sequence[str]) -> str | None:
    """Name the operators in which two passes differ, except those that PyTorch chooses by size.

    Args:
        before: names of the operators in the traced pass.
        after: names of the operators now.

    Returns:
        The first pair that differs; None if all agree.

    Example:
        >>> differing_operators(["aten.view", "aten.relu"], ["aten.relu"])
        >>> differing_operators(["aten.relu"], ["aten.exp"])
        'aten.relu, aten.exp'
    """
    spared = sum((name in _PRODUCTS) for name in before) - sum((name in _PRODUCTS) for name in after)
    for name in _OF_ONE:
        if not 0 <= after.count(name) - before.count(name) <= spared:
            return name
    pairs = zip_longest(_computed(before), _computed(after))
    return next((f"{a or 'nothing'}, {b or 'nothing'}" for a, b in pairs if a != b), None)


def _computed(names: Sequence[str]) -> list[str]:
    """Return the operators that do not depend on which of several equal ways PyTorch chooses."""
    plain = ("aten.add" if name in _WITH_BIAS else name for name in names)
    return [name for name in plain if computes(name)]
