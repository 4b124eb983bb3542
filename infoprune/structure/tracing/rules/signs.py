"""Know where no entry is below zero: there a maximum over channels does not miss those that are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MAKE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "abs", "square", "exp", "_softmax"})
_CLAMP = frozenset({"clamp", "clamp_min", "hardtanh"})
_CARRY = frozenset({
    "mul", "add", "cat", "mean", "sum", "amax", "maximum", "max_pool2d_with_indices", "avg_pool2d",
    "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "view", "_unsafe_view", "clone", "detach",
    "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "native_dropout",
})  # fmt: skip
"""What gives no entry below zero where its operands have none, and no number among its arguments is below zero."""


def has_no_negatives(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], operands: Sequence[bool]) -> bool:
    """Return whether no entry of an operator's first result is below zero.

    Args:
        name: the operator, such as ``"aten.relu_"``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        operands: for each tensor among these, in order, whether it has no entry below zero.
    """
    function = name.removeprefix("aten.").rstrip("_")
    if function in _MAKE:
        return True
    clamps = function in _CLAMP
    if not clamps and not (function in _CARRY and operands and all(operands)):
        return False
    numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int | float)]
    none_below_zero = all(number >= 0 for number in numbers)
    if clamps:  # of which the upper bound counts if it is the lower one
        lowest = args[1] if len(args) > 1 else kwargs.get("min", -1 if function == "hardtanh" else None)
        return isinstance(lowest, int | float) and none_below_zero
    return none_below_zero or function not in ("mul", "add")
