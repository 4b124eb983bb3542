"""Track statistics over channels, and where they cancel out.

The mean over channels changes with the set of channels, so an operator that uses it freezes them. In a normalisation,
though, ``(x - mean(x)) / std(x)``, statistics over the channels that stay are what is meant: layer norm without the
others. Such a result does not change when ``x`` is scaled, and it has the channels that the statistic was taken over.
So every tensor has a degree: 1 for ``x``, 2 for its square and for the mean of that, -1 for one over the root of that,
and 0 for ``x`` times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis, Statistic, TensorLabels, number_in
from infoprune.structure.tracing.rule_context import RuleContext

MOST_ADDED = 1e-2
"""The largest constant that is taken for the epsilon of a normalisation."""

_LIKE_IT = ("neg", "abs", "clone", "_to_copy", "detach", "alias", "lift_fresh", "relu", "positive", "mul", "div")
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0} | dict.fromkeys(_LIKE_IT, 1.0)

_BEFORE = frozenset({"pow", "square", "mul", "abs", "_to_copy", "sqrt"})
"""What may come before a statistic is taken."""


def carry(ctx: RuleContext, source: TensorLabels, out: TensorLabels) -> None:
    """Copy a tensor's dependences to a rearranged tensor.

    Args:
        ctx: the operator's context.
        source: labels of the tensor.
        out: labels of its rearranged form.
    """
    out.depend_on(source.base, source.degree, source.statistics)
    ctx.carried_statistics = True


def take(
    ctx: RuleContext, source: TensorLabels, out: TensorLabels, power: float | None, over: Sequence[Labels]
) -> None:
    """Record statistics over the channels ``over``; with ``power`` None they never cancel out.

    Args:
        ctx: the operator's context.
        source: labels of the tensor that the statistic is taken of.
        out: labels of the statistic.
        power: by which power of a factor the statistic grows if the tensor grows by that factor.
        over: labels of the channels.
    """
    new = (Statistic(axis, f"{ctx.short_name} over channels would change", ctx.number) for axis in over)
    statistics = (*source.statistics, *new)
    degree = None if source.degree is None or power is None else source.degree * power
    out.depend_on(source.base, degree, statistics)
    ctx.carried_statistics = True


def pick(ctx: RuleContext, source: TensorLabels, out: TensorLabels, axis: Axis) -> None:
    """Record that a result is one channel by its number: whatever reads its values freezes the others.

    Args:
        ctx: the operator's context.
        source: labels of the tensor that the channel is picked from.
        out: labels of the channel.
        axis: labels of all channels; None where there are none.
    """
    new = () if axis is None else (Statistic(axis, f"{ctx.short_name} picks channels by number", ctx.number),)
    if new or source.statistics:
        out.depend_on(source.base, None, (*source.statistics, *new))
        ctx.carried_statistics = True


def combine(
    ctx: RuleContext,
    args: Sequence[Any],
    tensors: Sequence[Tensor],
    operands: Sequence[TensorLabels],
    out: TensorLabels,
) -> None:
    """Combine the operands' dependences in the result of an element-wise operator.

    Args:
        ctx: the operator's context.
        args: its positional arguments.
        tensors: those that are tensors.
        operands: their labels.
        out: labels of the result, which are updated.
    """
    statistics = tuple({id(s): s for operand in operands for s in operand.statistics}.values())
    if statistics and ctx.name.endswith("_") and not (operands[0].statistics and not tensors[0]._is_view()):
        return  # others may hold what is overwritten
    if not statistics and ctx.short_name not in _BEFORE:
        return  # as good as a tensor of its own
    base, degree = _of_one(ctx, args, operands[0]) if len(operands) == 1 else _of_two(ctx, tensors, operands)
    # Degree zero: the scale cancels out, as in x / norm(x), so the result no longer depends on what is removed.
    if degree == 0 and all(any(ctx.same_channels(axis, s.axis) for axis in out.axes) for s in statistics):
        if all(operand.origin for operand in operands):  # a kernel, standardised over what stays, is zero elsewhere
            out.be_zero_like(base)
            ctx.zeros_settled = True
        out.scaled_out = base
        ctx.carried_statistics = True
    elif statistics or degree is not None:
        out.depend_on(base, degree, statistics)
        ctx.carried_statistics = True


def _of_one(ctx: RuleContext, args: Sequence[Any], operand: TensorLabels) -> tuple[TensorLabels, float | None]:
    name, power = ctx.short_name, None
    numbers = [value for value in args if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if name in _POWERS:
        power = _POWERS[name]
    elif name == "pow" and numbers and args[0] is not numbers[0]:
        power = float(numbers[0])
    elif name in ("add", "sub", "clamp_min", "clamp") and len(numbers) == 1 and 0 <= numbers[0] <= MOST_ADDED:
        power = 1.0
    return operand.base, None if power is None or operand.degree is None else operand.degree * power


def _of_two(
    ctx: RuleContext, tensors: Sequence[Tensor], operands: Sequence[TensorLabels]
) -> tuple[TensorLabels, float | None]:
    if len(operands) != 2:
        return operands[0].base, None
    a, b = operands
    number = number_in(tensors[1])
    if ctx.short_name in ("maximum", "add") and number is not None and 0 <= number <= MOST_ADDED:
        return a.base, a.degree
    # What is normalised, and moved by what cancels out likewise: w / std(w) - mean(w) / std(w).
    if ctx.short_name in ("add", "sub") and b.statistics and b.degree == 0 and a.scaled_out is b.base:
        return b.base, 0
    sign = {"mul": 1, "div": -1}.get(ctx.short_name)
    if a.base is not b.base:  # at most one of them is about the channels, the other is as good as a constant
        if sign is None or bool(a.statistics) == bool(b.statistics):
            return a.base, None
        return (a.base, a.degree) if a.statistics else (b.base, None if b.degree is None else sign * b.degree)
    if a.degree is None or b.degree is None:
        return a.base, None
    if sign is not None:
        return a.base, a.degree + sign * b.degree
    same = ctx.short_name in ("add", "sub", "maximum", "minimum") and a.degree == b.degree
    return a.base, a.degree if same else None
