"""Find the factors among an operator's arguments that code may compute from a width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infoprune.structure.labels.tensor_labels import labels_of

_WITH_NUMBERS = frozenset({
    "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.pow", "aten.floor_divide", "aten.remainder",
    "aten.fmod", "aten.addcmul", "aten.addcdiv", "aten.lerp", "aten.full", "aten.new_full", "aten.full_like",
    "aten.fill", "aten.scalar_tensor", "aten.masked_fill", "aten.clamp", "aten.clamp_min", "aten.clamp_max",
    "aten.hardtanh",
    "aten.threshold", "aten.leaky_relu", "aten.elu", "aten.celu", "aten.softplus", "aten.eq", "aten.ne", "aten.lt",
    "aten.le", "aten.gt", "aten.ge",
})  # fmt: skip
"""Operators that compute with whole numbers, which elsewhere are dimensions, sizes and places."""

_WITH_WINDOWS = frozenset({
    "aten.convolution", "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices", "aten.im2col",
})  # fmt: skip
"""Operators whose lists of whole numbers say which places of an image they take: kernel, stride, padding, dilation."""

_WRITTEN_OUT = 16
"""A tensor of at most so many numbers that the code writes out is compared number by number, a larger one by sums."""


def scalars_in(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> tuple[float, ...]:
    """Return the factors among an operator's arguments; one that changes when a model shrinks was computed from a size.

    Factors are Python floats, whole numbers too where the operator computes with them (``x / x.shape[1]``), the windows
    of convolutions and pooling, how far a roll moves a dimension that keeps its size, and on shapes also the numbers of
    real tensors (``torch.tensor(c).sqrt()``) unless they carry labels: those are uniform tensors that have shrunk to
    one channel.

    Args:
        name: the operator, without its overload.
        args: its positional arguments.
        kwargs: its keyword arguments.
        tensors: the tensors among them.
    """
    if name in _WITH_WINDOWS:
        return tuple(float(n) for value in args if isinstance(value, (list, tuple)) for n in value)
    if name == "aten.roll" and len(args) > 2:
        axes = labels_of(args[0]).axes
        return tuple(float(shift) for shift, dim in zip(args[1], args[2], strict=True) if axes[dim] is None)
    if name == "aten._to_copy":
        return _moved_to_shapes(args[0], kwargs)
    whole = name.rstrip("_") in _WITH_NUMBERS
    kinds = (float, complex, int) if whole else (float, complex)
    found: list[float] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, kinds) and not isinstance(value, bool):
            found += (value.real, value.imag) if isinstance(value, complex) else (float(value),)
        elif isinstance(value, Tensor) and not value.is_meta and _are_factors(value, tensors, whole):
            found += _numbers(value)
    return tuple(map(comparable, found))


def comparable(value: Any) -> Any:
    """Return a value, or ``math.nan`` for any NaN: tuples that hold this same object are equal.

    Example:
        >>> (float("nan"),) == (float("nan"),), (comparable(float("nan")),) == (comparable(float("nan")),)
        (False, True)
    """
    return value if value == value else math.nan


def _are_factors(tensor: Tensor, others: Sequence[Tensor], whole: bool) -> bool:
    """Return whether a real tensor among shapes holds factors: neither places to pick nor values of the model."""
    if not (tensor.is_floating_point() or tensor.is_complex() or whole) or not tensor.numel():
        return False
    return any(other.is_meta for other in others) and not _is_known(tensor)


def _is_known(tensor: Tensor) -> bool:
    labels = labels_of(tensor)
    return labels.origin is not None or labels.labelled


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    """Return the numbers of a tensor, or their sums if they are many, without those that are none."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()
    if len(flat) > _WRITTEN_OUT:
        flat = flat.double()
        flat = torch.stack([flat.sum(), flat @ torch.arange(1.0, len(flat) + 1, dtype=flat.dtype)])
    return tuple(float(n) for n in flat.tolist() if n == n)


def _moved_to_shapes(tensor: Tensor, kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the numbers of a tensor without labels whose values are lost, since it goes to the meta device."""
    device = kwargs.get("device")
    if device is None or device.type != "meta" or tensor.is_meta or _is_known(tensor):
        return ()
    return _numbers(tensor)
