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


def values_at_removed(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tensors: Sequence[Tensor],
    operands: Sequence[TensorLabels],
    axes: Sequence[Axis],
) -> list[tuple[Labels, frozenset[float]]]:
    """Return the labelled dimensions of a result, each with the values that it may have at removed indices.

    Args:
        name: the operator's, such as ``"aten.relu_"``.
        args: its arguments.
        kwargs: its keyword arguments.
        tensors: the tensors among these, in order.
        operands: their labels.
        axes: the labels of the result.

    Returns:
        Labels and values; no values where nothing is known.
    """
    if all(axis is None for axis in axes):
        return []
    places = iter(range(len(tensors)))
    described = _described(list(args), places), _described(sorted(kwargs.items()), places)
    found = []
    for dim, axis in enumerate(axes):
        if axis is not None:
            pairs = zip(tensors, operands, strict=True)
            known = tuple(_known(tensor, operand, dim - len(axes), axis) for tensor, operand in pairs)
            found.append((axis, _values(name, known, *described)))
    return found


def _known(tensor: Tensor, operand: TensorLabels, dim: int, axis: Labels) -> float | None:
    """Return what an operand has at removed indices of a dimension, counted from the end: 0, or 1 if it is true."""
    own = operand.axes[dim] if -dim <= tensor.dim() and tensor.shape[dim] == len(axis) else None
    if own is None:
        return None
    return 0.0 if operand.zero_along(own) else 1.0 if operand.true_along(own) else None


def _described(value: Any, places: Any) -> Any:
    """Return arguments in a form that can be a cache key."""
    if isinstance(value, Tensor):
        return _Operand(next(places), value.dtype, number_in(value))
    return tuple(_described(item, places) for item in value) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4096)
def _values(name: str, known: tuple[float | None, ...], args: Any, kwargs: Any) -> frozenset[float]:
    """Return what an operator makes of numbers, some operands being known; nothing if it runs on no such numbers."""
    space, _, function = name.partition(".")
    operator = getattr(getattr(torch.ops, space), function)
    with _disable_current_modes(), torch.random.fork_rng(devices=()):
        given = {key: _numbers(value, known) for key, value in kwargs if key != "device"}
        try:
            result = operator(*(_numbers(arg, known) for arg in args), **given)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return frozenset()  # not an operator on numbers of any shape, so nothing is known of it
        first = result if isinstance(result, Tensor) else result[0]
        first = first.reshape(-1)
        if first[-1:].isnan().any():
            first = first[:-1]  # 0 / 0: a divisor that is zero spoils the output of any model
        return frozenset((first.abs() if first.is_complex() else first.double()).tolist())


def _numbers(arg: Any, known: tuple[float | None, ...]) -> Any:
    if not isinstance(arg, _Operand):
        return [_numbers(item, known) for item in arg] if type(arg) is tuple else arg
    if arg.value is not None:
        return torch.tensor(arg.value, dtype=arg.dtype, device="cpu")
    if (value := known[arg.place]) is not None:
        return torch.full((len(_PROBES) + 1,), value, dtype=arg.dtype, device="cpu")
    probes = torch.cat([torch.tensor(_PROBES, device="cpu").roll(arg.place), torch.zeros(1, device="cpu")])
    return (probes > 0) if arg.dtype is torch.bool else probes.to(arg.dtype)
