"""What some operators return on shapes alone, where PyTorch's own meta kernels take their arithmetic apart in Python.

These few make up most of the time that a model needs on the meta device. Shapes, dtypes and memory layout are those
of PyTorch; where that would take more than a glance (mixed dtypes, broadcasting) it is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

_SAME_SHAPE = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.mul.Scalar,
        _aten.div.Tensor,
        _aten.gelu.default,
        _aten.silu.default,
        _aten.sigmoid.default,
        _aten.hardswish.default,
        _aten.hardsigmoid.default,
        _aten.leaky_relu.default,
        _aten._softmax.default,
        _aten._safe_softmax.default,
        _aten.masked_fill.Scalar,
    }
)
"""Operators whose result is like their first operand, if the other tensors have its shape and dtype."""


def on_shapes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator on meta tensors, or NotImplemented where PyTorch is to say."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        return NotImplemented
    if func in _SAME_SHAPE:
        return _like_first(x, args[1:], kwargs)
    if func is _aten.native_batch_norm.default:
        return _batch_norm(*args)
    if func is _aten.native_layer_norm.default:
        return _layer_norm(*args)
    if func is _aten.addmm.default and not kwargs:
        return x.new_empty(args[1].shape[0], args[2].shape[1]) if _agree(*args) else NotImplemented
    return NotImplemented


def _like_first(x: Tensor, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    for other in (*others, *kwargs.values()):
        plain = not isinstance(other, (torch.dtype, complex)) and other is not True
        if isinstance(other, Tensor):
            plain = other.is_meta and other.shape == x.shape and other.dtype in (x.dtype, torch.bool)
        if not plain:
            return NotImplemented
    return torch.empty_like(x)


def _batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[1] if args[4] else 0)
    return torch.empty_like(x), statistics, statistics.clone()


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, *_: Any) -> Any:
    if tuple(x.shape[-len(shape) :]) != tuple(shape) or (weight is not None and weight.dtype != x.dtype):
        return NotImplemented
    statistics = x.new_empty([*x.shape[: -len(shape)], *[1] * len(shape)])
    return x.new_empty(x.shape), statistics, statistics.clone()


def _agree(bias: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether ``bias + a @ b`` is a plain linear layer that will not raise."""
    sizes = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == (b.shape[1],)
    return bool(sizes and a.dtype == b.dtype == bias.dtype)
