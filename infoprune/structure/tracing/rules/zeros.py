"""Find where a removed channel leaves zeros behind an element-wise operator.

Whether it does depends on the operator, on its arguments (``hardtanh(x, 0.5, 2)``) and on which operands have the
channel. So the operator itself is run on a few numbers: zeros where an operand has the channel, others elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, number_in

_PROBES = (0.7, -1.3, 2.5, -0.2, 1.0, -3.0, 0.05, 4.0)
"""What stands for an operand that need not be zero; after these, all such operands are zero at once, as ``a == b`` can
be true where ``a`` is zero."""


class _Operand(NamedTuple):
    """An operand: its place among the arguments, its dtype, and its value if it is a number."""

    place: int
    dtype: torch.dtype
    value: float | None


def nonzero_axes(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tensors: Sequence[Tensor],
    operands: Sequence[TensorLabels],
    axes: Sequence[Axis],
) -> list[Axis]:
    """Return the labelled dimensions of a result at whose removed indices it need not be zero.

    Args:
        name: the operator's, such as ``"aten.relu_"``.
        args: its arguments.
        kwargs: its keyword arguments.
        tensors: the tensors among these, in order.
        operands: their labels.
        axes: the labels of the result.
    """
    if all(axis is None for axis in axes):
        return []
    places = iter(range(len(tensors)))
    described = _described(list(args), places), _described(sorted(kwargs.items()), places)
    found: list[Axis] = []
    for dim, axis in enumerate(axes):
        if axis is None:
            continue
        pairs = zip(tensors, operands, strict=True)
        zeros = tuple(_has(t, o, dim - len(axes), axis) and o.zero_along(o.axes[dim - len(axes)]) for t, o in pairs)
        if not _makes_zeros(name, zeros, *described):
            found.append(axis)
    return found


def _has(tensor: Tensor, operand: TensorLabels, dim: int, axis: Labels) -> bool:
    """Return whether an operand has a dimension of the result, counted from the end, or is stretched along it."""
    own = dim + tensor.dim()
    return own >= 0 and operand.axes[own] is not None and tensor.shape[own] == len(axis)


def _described(value: Any, places: Any) -> Any:
    """Return arguments in a form that can be a cache key."""
    if isinstance(value, Tensor):
        return _Operand(next(places), value.dtype, number_in(value))
    return tuple(_described(item, places) for item in value) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4096)
def _makes_zeros(name: str, zeros: tuple[bool, ...], args: Any, kwargs: Any) -> bool:
    space, _, function = name.partition(".")
    operator = getattr(getattr(torch.ops, space), function)
    with _disable_current_modes(), torch.random.fork_rng(devices=()):
        given = {key: _numbers(value, zeros) for key, value in kwargs if key != "device"}
        try:
            result = operator(*(_numbers(arg, zeros) for arg in args), **given)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False  # not an operator on numbers of any shape, so nothing is known of it
        first = result if isinstance(result, Tensor) else result[0]
        undefined = first.isnan()
        nonzero = (first != 0) & ~undefined
        if first.dim():
            undefined[-1] = False  # 0 / 0: a divisor that is zero spoils the output of any model
        return not bool(undefined.any() or nonzero.any())


def _numbers(arg: Any, zeros: tuple[bool, ...]) -> Any:
    if not isinstance(arg, _Operand):
        return [_numbers(item, zeros) for item in arg] if type(arg) is tuple else arg
    if arg.value is not None:
        return torch.tensor(arg.value, dtype=arg.dtype, device="cpu")
    if zeros[arg.place]:
        return torch.zeros(len(_PROBES) + 1, dtype=arg.dtype, device="cpu")
    probes = torch.cat([torch.tensor(_PROBES, device="cpu").roll(arg.place), torch.zeros(1, device="cpu")])
    return (probes > 0) if arg.dtype is torch.bool else probes.to(arg.dtype)
