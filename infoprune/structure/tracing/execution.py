"""Run single operators on numbers or on shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infoprune.structure.tracing import meta_memory
from infoprune.structure.tracing.meta_kernels import Kernel
from infoprune.structure.tracing.overwritten import is_overwritten, is_view, written
from infoprune.structure.tracing.rules import Rule


@dataclass(frozen=True, slots=True)
class Operator:
    """An ATen operator and what is known of it.

    Attributes:
        func: the operator.
        rule: what it does to labels.
        name: its name without overload.
        kernel: how it is run on shapes, if we know a quick way.
        draws: whether it draws random numbers.
    """

    func: Callable[..., Any]
    rule: Rule
    name: str
    kernel: Kernel | None
    draws: bool


Observe = Callable[[Operator, tuple[Any, ...], dict[str, Any]], Any]
"""Run an operator with its arguments, and record it."""


def execute(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    """Run an operator; if any of its ``tensors`` is on meta, all are taken there.

    Args:
        operator: what to run.
        args: positional arguments.
        kwargs: keyword arguments.
        tensors: those among them that are tensors.

    Returns:
        What the operator returns.
    """
    meta = [tensor.is_meta for tensor in tensors]
    if False in meta and (True in meta or any(map(is_overwritten, tensors))):
        return _execute_mixed(operator, args, kwargs, tensors)
    return _execute_alike(operator, args, kwargs, on_shapes=True in meta)


def _execute_mixed(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    """Run an operator on shapes although some operands have numbers, true or not."""
    lost = any(map(is_overwritten, tensors))
    if lost and is_view(operator.func) and not any(tensor.is_meta for tensor in tensors):
        return operator.func(*args, **kwargs)
    given = args, kwargs
    if lost or (kwargs.get("device") is None and operator.name != "aten._to_copy"):
        args = tuple(_carried_to_meta(value) for value in args)
        kwargs = {key: _carried_to_meta(value) for key, value in kwargs.items()}
    result = _execute_alike(operator, args, kwargs, on_shapes=True)
    return written(operator.func, *given, result)


def _execute_alike(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], *, on_shapes: bool) -> Any:
    result = NotImplemented if operator.kernel is None else operator.kernel(args, kwargs)
    if result is not NotImplemented:
        return result
    return meta_memory.run(operator.func, args, kwargs) if on_shapes else operator.func(*args, **kwargs)


def _carried_to_meta(value: Any) -> Any:
    """Return an argument of an operator with its tensors as shapes; tensors are at most one level of lists deep."""
    if isinstance(value, Tensor) and not value.is_meta:
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return [_carried_to_meta(item) for item in value] if isinstance(value, (list, tuple)) else value
