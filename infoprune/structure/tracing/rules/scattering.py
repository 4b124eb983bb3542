"""Reading and writing along one dimension at places that another tensor gives; the other dimensions are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.labels.tensor_labels import Axis, labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules.movement import labels_or_new
from infoprune.structure.tracing.rules.registry import rule, tensors_in


@rule("aten.gather")
def gather(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Read entries of a dimension at given places; the result has the shape of the places, as many of one entry."""
    operand, dim, places = args[:3]
    axes = _beside(ctx, dim, [operand, places], outs[0], stretched=operand.dim() > 0 and operand.shape[dim] == 1)
    _settle_zeros(ctx, outs[0], axes, [operand])
    if outs[0].dim() and (axis := axes[dim]) is not None:
        labels_of(outs[0]).nonzero += (axis,)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Write entries of a dimension at given places, or add to them; what is zero stays zero where zeros are written."""
    written = [*tensors_in(args[3:]), *tensors_in([kwargs.get("src")])]
    axes = _beside(ctx, args[1], [args[0], args[2], *written], outs[0])
    value = args[3] if len(args) > 3 else kwargs.get("value", 0)
    _settle_zeros(ctx, outs[0], axes, [args[0], *written], zero=bool(written) or value == 0)


@rule("aten.index_add", "aten.index_copy", "aten.index_fill", "aten.index_reduce")
def along_numbers(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Write slices of a dimension at given numbers; zeros are left where all that is written is zero."""
    ctx.freeze_all(labels_of(args[2]).axes, "its entries are places")
    written = tensors_in([args[3]])
    axes = _beside(ctx, args[1], [args[0], *written], outs[0])
    _settle_zeros(ctx, outs[0], axes, [args[0], *written], zero=bool(written) or args[3] == 0)


@rule("aten.masked_scatter")
def masked_scatter(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Fill places of a mask with a source's numbers in order: with whole rows, if the mask is the same along these."""
    tensor, mask, source = args[:3]
    width = outs[0].shape[-1] if outs[0].dim() else 0
    own = [labels_of(each) for each in (tensor, mask, source)]
    rows = mask.dim() > 0 and (mask.shape[-1] == 1 or mask.stride(-1) == 0)
    rows &= all(each.dim() > 0 and each.shape[-1] == width for each in (tensor, source))
    for labels in own:
        ctx.freeze_all(labels.axes[:-1] if rows else labels.axes, "masked_scatter fills it in the order of a mask")
    if not rows:
        return ctx.label(outs[0], [None] * outs[0].dim())
    meeting = [own[0].axes[-1], own[2].axes[-1]]
    if mask.shape[-1] == width and own[1].axes[-1] is not None:
        meeting.append(own[1].axes[-1])  # as wide as the code has made it
    axes: list[Axis] = [*[None] * (outs[0].dim() - 1), ctx.unite_all(meeting)]
    _settle_zeros(ctx, outs[0], axes, [tensor, source])


def _settle_zeros(
    ctx: RuleContext, out: Tensor, axes: Sequence[Axis], sources: Sequence[Tensor], zero: bool = True
) -> None:
    """Label a result that is zero wherever all its sources are zero, at any place."""
    nonzero = [
        axis
        for dim, axis in enumerate(axes)
        if axis is not None
        and not all(labels_of(tensor).zero_along(labels_of(tensor).axes[dim - len(axes)]) for tensor in sources)
    ]
    ctx.label(out, axes, zero=zero, nonzero=nonzero)
    ctx.zeros_settled = True


def _beside(ctx: RuleContext, dim: int, tensors: Sequence[Tensor], out: Tensor, stretched: bool = False) -> list[Axis]:
    """Freeze a dimension along which places are given, unite the others; return the axes of the result.

    Where a dimension of one is stretched, it has as many entries as the last of the tensors has places.
    """
    rank = out.dim()
    axes: list[Axis] = []
    for d in range(rank):
        along = [labels_of(tensor).axes[d] if tensor.dim() == rank else None for tensor in tensors]
        if d == dim % rank and stretched:
            axes.append(labels_or_new(ctx, tensors[-1], d))
        elif d == dim % rank:
            ctx.freeze_all(along, f"{ctx.short_name} takes it by places")
            axes.append(None)
        elif all(tensor.dim() == rank and tensor.shape[d] == out.shape[d] for tensor in tensors):
            axes.append(ctx.unite_all(along))
        else:
            ctx.freeze_all(along, f"{ctx.short_name} takes a part of it")
            axes.append(None)
    return axes
