"""Compute the results of some operators on shapes faster than PyTorch's own meta kernels.

These few make up most of the time that a model needs on the meta device. Shapes, dtypes and memory layout are those
of PyTorch; where that would take more than a glance (mixed dtypes, say) it is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

_aten = torch.ops.aten

Kernel: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Takes an operator's arguments; NotImplemented where PyTorch is to say."""

_ELEMENTWISE = (
    _aten.add.Tensor,
    _aten.sub.Tensor,
    _aten.mul.Tensor,
    _aten.mul.Scalar,
    _aten.div.Tensor,
    _aten.relu.default,
    _aten.exp.default,
    _aten.tanh.default,
    _aten.clamp.default,
    _aten.clamp_min.default,
    _aten.gelu.default,
    _aten.silu.default,
    _aten.sigmoid.default,
    _aten.hardswish.default,
    _aten.hardsigmoid.default,
    _aten.leaky_relu.default,
    _aten._softmax.default,
    _aten._safe_softmax.default,
    _aten.masked_fill.Scalar,
)
"""Operators whose result has the shape and layout of their widest operand."""

_IN_PLACE = (
    _aten.add_.Tensor,
    _aten.sub_.Tensor,
    _aten.mul_.Tensor,
    _aten.div_.Tensor,
    _aten.relu_.default,
    _aten.tanh_.default,
    _aten.sigmoid_.default,
    _aten.silu_.default,
    _aten.hardswish_.default,
    _aten.hardtanh_.default,
    _aten.leaky_relu_.default,
)
"""Operators that return their first operand."""


def kernel_of(func: Callable[..., Any]) -> Kernel | None:
    """Return the function that runs an operator on shapes; None to leave it to PyTorch.

    Args:
        func: an operator's overload.
    """
    if func is _aten.cat.default:
        return lambda args, kwargs: NotImplemented if kwargs else _cat(*args)
    if func is _aten.clone.default:
        return _on_floats(lambda args, kwargs: _clone(*args, **kwargs))
    if func is _aten.empty.memory_format:
        return lambda args, kwargs: _new(*args, **kwargs)
    if func in _ELEMENTWISE:
        return _on_floats(_elementwise)
    if func in _IN_PLACE:
        return _on_floats(_in_place)
    plain = _PLAIN.get(func)
    return None if plain is None else _on_floats(lambda args, kwargs: NotImplemented if kwargs else plain(*args))


def forget() -> None:
    """Release the tensors that a pass has copied."""
    _prototype.cache_clear()
    _layout.cache_clear()


def _on_floats(kernel: Kernel) -> Kernel:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
            return NotImplemented
        return kernel(args, kwargs)

    return run


def _elementwise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    widest = _widest(args[0], args[1:], kwargs)
    if widest is not None:
        return _like(widest)
    return _crossed(*args) if len(args) == 2 and isinstance(args[1], Tensor) and not kwargs else NotImplemented


def _crossed(a: Tensor, b: Tensor) -> Any:
    """Multiply ``(n, 1)`` and ``(1, m)`` to ``(n, m)``."""
    plain = a.dtype == b.dtype and b.is_meta and a.dim() == b.dim() and a.is_contiguous() and b.is_contiguous()
    if not plain or not all(m == n or 1 in (m, n) for m, n in zip(a.shape, b.shape, strict=True)):
        return NotImplemented
    return _empty(a, [n if m == 1 else m for m, n in zip(a.shape, b.shape, strict=True)])


def _in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return x if _widest(x, args[1:], kwargs) is x else NotImplemented


def _widest(x: Tensor, others: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the operand that has the shape of the result; None where that cannot be told."""
    for other in (*others, *kwargs.values()):
        if isinstance(other, (torch.dtype, complex)) or other is True:
            return None
        if isinstance(other, Tensor):
            if not other.is_meta or other.dtype not in (x.dtype, torch.bool):
                return None
            if not _fits(other, x):
                if other.dtype != x.dtype or not _fits(x, other):
                    return None
                x = other
    return x


def _fits(small: Tensor, wide: Tensor) -> bool:
    """Return whether broadcasting ``small`` and ``wide`` gives the shape of ``wide``."""
    if small.shape == wide.shape:
        return True
    missing = wide.dim() - small.dim()
    return missing >= 0 and all(a in (1, b) for a, b in zip(small.shape, wide.shape[missing:], strict=True))


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return _prototype(x.dtype, tuple(shape)).clone()


@lru_cache(maxsize=1024)  # a clone costs a sixth of a new tensor, and models repeat their shapes
def _prototype(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _new(
    size: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | None = None, **others: Any
) -> Any:
    plain = dtype is not None and device is not None and device.type == "meta" and others in _USUAL
    return _prototype(dtype, tuple(size)).clone() if plain else NotImplemented


_USUAL: tuple[dict[str, Any], ...] = ({}, {"layout": torch.strided})
"""What a new tensor is asked for besides size, type and device, if it is an ordinary one."""


def _like(x: Tensor) -> Tensor:
    """Make a tensor of equal shape and layout without holes or overlaps, as PyTorch's operators make their results."""
    return x.clone() if x.is_contiguous() else _layout(x.dtype, x.shape, x.stride()).clone()


@lru_cache(maxsize=1024)  # what has no holes is cloned thirty times as quickly
def _layout(dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta").clone()


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format is torch.contiguous_format:
        return _empty(x, x.shape)
    return _like(x) if memory_format in (None, torch.preserve_format) else NotImplemented


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    plain = x.dim() == weight.dim() and x.dtype == weight.dtype and x.is_contiguous() and weight.is_contiguous()
    channels = plain and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    biased = bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)
    if transposed and x.shape[1] != weight.shape[0]:  # which PyTorch does not check on shapes
        raise RuntimeError(f"{weight.shape[0]} kernels of a transposed convolution meet {x.shape[1]} channels")
    if transposed and weight.shape[0] % groups:
        raise RuntimeError(f"{weight.shape[0]} kernels of a transposed convolution cannot be in {groups} groups")
    if transposed or not channels or not biased or not len(stride) == len(padding) == len(dilation) == x.dim() - 2:
        return NotImplemented
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return _empty(x, (x.shape[0], weight.shape[0], *sizes)) if min(sizes) > 0 else NotImplemented


def _batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = _empty(x, [x.shape[1] if args[4] else 0])
    return x.clone(), statistics, statistics.clone()


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, *_: Any) -> Any:
    if tuple(x.shape[-len(shape) :]) != tuple(shape) or (weight is not None and weight.dtype != x.dtype):
        return NotImplemented
    statistics = _empty(x, [*x.shape[: -len(shape)], *[1] * len(shape)])
    return _empty(x, x.shape), statistics, statistics.clone()


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Any:
    first = parts[0]
    dim %= max(first.dim(), 1)
    sizes = [list(part.shape) for part in parts]
    lengths = [size.pop(dim) if dim < len(size) else 0 for size in sizes]
    plain = all(p.is_meta and p.dtype == first.dtype and p.is_contiguous() for p in parts)
    if not plain or min(lengths) == 0 or any(size != sizes[0] for size in sizes):
        return NotImplemented
    return _empty(first, [*first.shape[:dim], sum(lengths), *first.shape[dim + 1 :]])


def _mean(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False) -> Any:
    if not dims:
        return NotImplemented
    gone = {dim % x.dim() for dim in dims}
    sizes = [1 if d in gone else size for d, size in enumerate(x.shape) if keepdim or d not in gone]
    return _empty(x, sizes)


def _linear(bias: Tensor, a: Tensor, b: Tensor) -> Any:
    """Compute ``bias + a @ b``, where that is a plain linear layer that will not raise."""
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == (b.shape[1],)
    return _empty(a, (a.shape[0], b.shape[1])) if fits and a.dtype == b.dtype == bias.dtype else NotImplemented


def _product(a: Tensor, b: Tensor) -> Any:
    """Compute ``a @ b`` of matrices or batches of matrices."""
    fits = a.dim() == b.dim() and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype
    return _empty(a, (*a.shape[:-1], b.shape[-1])) if fits else NotImplemented


def _resampled(x: Tensor, size: Sequence[int] | None, *_: Any) -> Any:
    if size is None or not x.is_contiguous() or 0 in (*x.shape, *size):
        return NotImplemented
    return _empty(x, (*x.shape[:2], *size))


_PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.upsample_nearest2d.default: _resampled,
    _aten.upsample_nearest2d.vec: _resampled,
    _aten.upsample_bilinear2d.default: _resampled,
    _aten.upsample_bilinear2d.vec: _resampled,
    _aten.mean.dim: _mean,
    _aten.addmm.default: _linear,
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
}
"""Operators on floating-point numbers, left to PyTorch where they come with keywords."""
