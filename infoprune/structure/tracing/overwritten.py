"""Know the tensors with numbers into which a pass on shapes has written shapes.

Code that makes ``torch.zeros(2, 8)`` without a device makes it on the CPU, and it keeps its numbers there. What it
writes into it later, as ``zeros[:, 1] = x.mean()``, has none. So from then on it is taken for its shape, and so are all
views on its memory. Where control flow reads its numbers, the model cannot be traced on shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_overwritten: dict[int, Tensor] = {}
"""Memory -> a tensor there, which holds it, for the pass that runs."""


def forget() -> None:
    """Forget all tensors, after a pass."""
    _overwritten.clear()


def is_overwritten(tensor: Tensor) -> bool:
    """Return whether a tensor has numbers that are not true any more."""
    if not _overwritten or tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return _memory(tensor) in _overwritten


def check_numbers(tensor: Tensor) -> None:
    """Refuse the numbers of a tensor that are not true any more.

    Raises:
        RuntimeError: it was overwritten.
    """
    if is_overwritten(tensor):
        raise RuntimeError("the code reads numbers of a tensor on the CPU that were computed on shapes")


def written(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
    """Note the tensors with numbers that an operator on shapes should have written to.

    Args:
        func: the operator.
        args: its positional arguments, before they were taken for their shapes.
        kwargs: its keyword arguments.
        result: what it returned for shapes.

    Returns:
        The tensors that it was to write to where it returns these, else the result.

    Raises:
        RuntimeError: it changes the size of a tensor with numbers.
    """
    named = _written_arguments(func)
    values = [args[place] if place < len(args) else kwargs.get(name) for place, name in named]
    targets = [value for value in values if isinstance(value, Tensor)]
    if not targets:
        return result
    _overwritten.update((_memory(target), target) for target in targets if not target.is_meta)
    results = [result] if isinstance(result, Tensor) else list(result or ())
    if len(targets) != len(results):
        return result
    if any(target.shape != made.shape for target, made in zip(targets, results, strict=True)):
        raise RuntimeError(f"{func} changes the size of a tensor on the CPU")
    return targets[0] if isinstance(result, Tensor) else tuple(targets)


@cache
def _written_arguments(func: torch._ops.OpOverload) -> list[tuple[int, str]]:
    """Return the places and names of the arguments to which an operator writes."""
    arguments = enumerate(func._schema.arguments)
    return [(place, each.name) for place, each in arguments if each.alias_info and each.alias_info.is_write]


@cache
def is_view(func: torch._ops.OpOverload) -> bool:
    """Return whether an operator only returns a view on its operand."""
    schema = func._schema
    return not schema.is_mutable and any(each.alias_info is not None for each in schema.returns)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
