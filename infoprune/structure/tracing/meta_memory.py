"""Cache the results of operators on shapes by their arguments.

PyTorch's own meta kernels take an operator's arithmetic apart in Python, which takes up to a millisecond a call. Loops
over boxes or time steps, and the dry runs of a trace, call operators again and again on the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from infoprune.structure.tracing.rules import tensors_in

MOST = 4096
"""So many results are remembered in a process; then it starts anew."""

_results: dict[Hashable, tuple[type | None, list[Tensor]]] = {}


class _Unknown(Exception):
    """Mark an argument that cannot be part of a cache key."""


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on shapes, or rebuild its cached result for the same arguments.

    Operators that write to their arguments, or return views on them, are always run.

    Args:
        func: an operator's overload.
        args: its positional arguments; tensors are on the meta device.
        kwargs: its keyword arguments.

    Returns:
        What the operator returns.
    """
    if not _makes_new_tensors(func):
        return func(*args, **kwargs)
    try:
        key = (func, torch.get_default_dtype(), _described(args), _described(tuple(kwargs.items())))
        found = _results.get(key)
    except (_Unknown, TypeError):  # an argument is no meta tensor, or cannot be hashed
        return func(*args, **kwargs)
    if found is not None:
        container, made = found
        copies = [tensor.clone() for tensor in made]
        return copies[0] if container is None else container(copies)
    result = func(*args, **kwargs)
    _remember(key, result)
    return result


def _remember(key: Hashable, result: Any) -> None:
    container = None if isinstance(result, Tensor) else type(result)
    tensors = tensors_in((result,))
    complete = container is None or (container in (list, tuple) and len(tensors) == len(result))
    if tensors and complete and all(_is_plain(tensor) and _clones(tensor) for tensor in tensors):
        if len(_results) >= MOST:
            _results.clear()
        _results[key] = container, [tensor.clone() for tensor in tensors]


def _clones(tensor: Tensor) -> bool:
    """Return whether a clone of a tensor has its memory layout: not where that has holes or overlaps."""
    return tensor.clone().stride() == tensor.stride()


def _described(value: Any) -> Hashable:
    """Return an argument as something to look up by: of tensors their shape, strides and dtype."""
    if isinstance(value, Tensor):
        if not _is_plain(value):
            raise _Unknown
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_described(item) for item in value])
    return type(value), value  # 1, 1.0 and True are equal, and make different dtypes


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.layout is torch.strided and not tensor.is_complex()


@cache
def _makes_new_tensors(func: Callable[..., Any]) -> bool:
    """Return whether an operator of PyTorch's own neither writes to its arguments nor returns views on them."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):  # an operator of another library may depend on anything
        return False
    return all(item.alias_info is None for item in (*schema.arguments, *schema.returns))
