"""Element-wise operators and tensors that a model makes itself: labels at the same position go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules import statistics
from infoprune.structure.tracing.rules.registry import POINTWISE, rule, tensors_in
from infoprune.structure.tracing.rules.zeros import values_at_removed

# Element-wise operators that PyTorch does not tag as such.
_UNTAGGED = (
    "copy clone alias detach lift_fresh _to_copy masked_fill where prelu _prelu_kernel fill bernoulli native_dropout "
    "dropout hardswish hardsigmoid hardtanh relu6 leaky_relu silu mish elu celu selu gelu softplus softshrink "
    "hardshrink threshold log_sigmoid_forward rrelu rrelu_with_noise addcmul addcdiv lerp clamp zero "
    "exponential normal uniform log_normal cauchy geometric random poisson binomial "
    "complex polar _conj _conj_physical conj_physical resolve_conj _neg_view resolve_neg"
)


@rule(POINTWISE, *(f"aten.{name}" for name in _UNTAGGED.split()))
def elementwise(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Unite labels at the same position, broadcasting included."""
    tensors = tensors_in(args, kwargs)
    operands = [labels_of(tensor) for tensor in tensors]
    origin = operands[0].origin if len(operands) == 1 else None
    ctx.zeros_settled = True  # whatever operands are: x / (1 + abs(x)) is zero where x is, though 1 + abs(x) is not
    for number, out in enumerate(outs):
        axes = _broadcast(ctx, tensors, operands, out.shape)
        if not ctx.wants_zeros:
            ctx.label(out, axes, origin=origin)
            continue
        ctx.record.adds = ctx.short_name in _SUMS and are_added(ctx, tensors, operands, axes)
        made = values_at_removed(ctx.name, args, kwargs, tensors, operands, axes)
        lost = [] if number else [axis for axis, values in made if values != {0.0}]
        ctx.label(out, axes, number == 0, origin, nonzero=lost)
        if out.dtype is torch.bool:
            labels_of(out).true = tuple(axis for axis, values in made if values == {1.0})
        for operand in operands:
            if operand.joined:
                labels_of(out).joined |= operand.joined
        statistics.combine(ctx, args, tensors, operands, labels_of(out))


_SUMS = frozenset({"add", "sub", "rsub", "lerp", "addcmul"})


def are_added(
    ctx: RuleContext, tensors: Sequence[Tensor], operands: Sequence[TensorLabels], axes: Sequence[Axis]
) -> bool:
    """Return whether channels of a dimension would meet in a sum of several operands.

    A bias, computed from weights alone, is no such operand, nor is what has the same values for all channels.

    Args:
        ctx: the operator's context.
        tensors: the operands.
        operands: their labels.
        axes: the labels of the sum.
    """
    computed = [(tensor, operand) for tensor, operand in zip(tensors, operands, strict=True) if operand.origin is None]
    return len(computed) > 1 and any(
        sum(has_own(ctx, operand, dim) and tensor.shape[dim] == len(axis) for tensor, operand in computed) > 1
        for dim, axis in ((d - len(axes), axis) for d, axis in enumerate(axes))
        if axis is not None
    )


def has_own(ctx: RuleContext, operand: TensorLabels, dim: int) -> bool:
    """Return whether an operand has channels of layers along a dimension.

    Args:
        ctx: the operator's context.
        operand: labels of the operand.
        dim: the dimension, counted from the last, below zero.
    """
    axis = operand.axes[dim] if -dim <= len(operand.axes) else None
    return axis is not None and not ctx.is_new(axis)


def broadcast_axes(ctx: RuleContext, tensors: Sequence[Tensor], shape: Sequence[int]) -> list[Axis]:
    """Return the axes of an element-wise result; a dimension of one that is stretched says nothing about the others.

    Args:
        ctx: the operator's context.
        tensors: its operands.
        shape: of the result.

    Returns:
        One axis for each dimension of the result; labels that meet there are united.
    """
    return _broadcast(ctx, tensors, [labels_of(tensor) for tensor in tensors], shape)


def _broadcast(
    ctx: RuleContext, tensors: Sequence[Tensor], operands: Sequence[TensorLabels], shape: Sequence[int]
) -> list[Axis]:
    if len(operands) == 1 and tensors[0].shape == shape:
        return list(operands[0].axes)
    axes: list[Axis] = []
    for dim, size in enumerate(shape):
        meeting = []
        for tensor, operand in zip(tensors, operands, strict=True):
            own = dim - len(shape) + tensor.dim()
            if own >= 0 and tensor.shape[own] == size:
                meeting.append(operand.axes[own])
        axes.append(ctx.unite_all(meeting))
    return axes


@rule(
    "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like",
    "aten.randint_like",
)  # fmt: skip
def like(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Give a new tensor the labels of the existing one whose shape it takes."""
    ctx.label(outs[0], labels_of(args[0]).axes, zero=ctx.short_name == "zeros_like")
    ctx.carried_statistics = True  # nothing of its values is read


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.new_empty", "aten.rand", "aten.randn", "aten.randint",
)  # fmt: skip
def created(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label a uniform tensor that the model's code makes: it shrinks if the code asks for less, as a dry run tells."""
    ctx.label(outs[0], [ctx.new_labels(n) if n > 1 else None for n in outs[0].shape], zero="zeros" in ctx.name)


@rule("aten.scalar_tensor")
def of_a_number(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Note the number that the code has made a tensor of, as `torch.where` does."""
    ctx.label(outs[0], [])
    labels_of(outs[0]).number = float(args[0])
