"""Operators on lists of tensors, such as `torch._foreach_lerp_`, as calls of the operator on one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_PREFIX = "aten._foreach_"


def is_on_lists(name: str) -> bool:
    """Return whether an operator takes lists and acts on each item alone.

    Args:
        name: the operator, without its overload, such as ``aten._foreach_add``.
    """
    return name.startswith(_PREFIX)


def call_one_by_one(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any] | None:
    """Call the operator on single tensors, once for each item of the lists.

    Args:
        func: an operator on lists.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        The results; None where the operator writes into its first list.
    """
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    length = max(len(value) for value in named.values() if isinstance(value, (list, tuple)))
    one = getattr(torch.ops.aten, str(func.overloadpacket).removeprefix(_PREFIX))
    results = []
    for place in range(length):
        items = {name: value[place] if isinstance(value, (list, tuple)) else value for name, value in named.items()}
        options = {name: items.pop(name) for name in ("alpha", "value", "dtype") if name in items}  # by keyword only
        results.append(one(*items.values(), **options))
    return results if func._schema.returns else None
