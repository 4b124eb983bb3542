"""Find the factors among an operator's arguments that code may compute from a width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.labels.tensor_labels import labels_of

_ARITHMETIC = frozenset({
    "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.pow", "aten.floor_divide", "aten.remainder",
    "aten.fmod", "aten.addcmul", "aten.addcdiv", "aten.lerp",
})  # fmt: skip
"""Operators that compute with whole numbers, which elsewhere are dimensions, sizes and places."""


def scalars_in(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> tuple[float, ...]:
    """Return the factors among an operator's arguments; one that changes when a model shrinks was computed from a size.

    Factors are Python floats, whole numbers too where the operator computes with them (``x / x.shape[1]``), and on
    shapes also real tensors of one element (``torch.tensor(c).sqrt()``) unless they carry labels: those are uniform
    tensors that have shrunk to one channel.

    Args:
        name: the operator, without its overload.
        args: its positional arguments.
        kwargs: its keyword arguments.
        tensors: the tensors among them.
    """
    kinds = (float, int) if name.rstrip("_") in _ARITHMETIC else float
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if number or (isinstance(value, Tensor) and not value.is_meta and _is_factor(value, tensors)):
            found.append(float(value))
    return tuple(found)


def _is_factor(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    if tensor.numel() != 1 or not tensor.is_floating_point():
        return False
    return any(other.is_meta for other in others) and not labels_of(tensor).labelled
