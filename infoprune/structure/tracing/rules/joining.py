"""Operators that join tensors: along a dimension that they have, or along a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from infoprune.structure.labels import OUTSIDE, Labels
from infoprune.structure.labels.tensor_labels import Axis, labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules.elementwise import are_added, broadcast_axes, has_own
from infoprune.structure.tracing.rules.registry import rule


@rule("aten.cat", "aten.concat")
def cat(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Concatenate tensors, and their labels likewise; copies of a single index are an expanded dimension."""
    rank = outs[0].dim()
    tensors = [t for t in args[0] if t.dim() == rank]  # an old exception lets empty 1-D tensors join anything
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    operands = [labels_of(t) for t in tensors]
    axes: list[Axis] = []
    stretches = _are_copies(tensors) and tensors[0].shape[dim] == 1
    copies = ctx.new_labels(len(tensors)) if stretches else None
    for d in range(rank):
        if d != dim:
            axes.append(ctx.unite_all([operand.axes[d] for operand in operands]))
        elif stretches:
            axes.append(copies)
        elif all(operand.axes[d] is None for operand in operands):
            axes.append(None)
        else:
            parts = [_labels_or_outside(f.axes[d], t.shape[d]) for t, f in zip(tensors, operands, strict=True)]
            axes.append(np.concatenate(parts))
    ctx.label(outs[0], axes, zero=all(operand.zero for operand in operands), nonzero=[copies])
    ctx.keep_truth(outs[0], operands)
    _note_joined(ctx, tensors, outs[0], dim, axes)


def _are_copies(tensors: Sequence[Tensor]) -> bool:
    return len(tensors) > 1 and all(tensor is tensors[0] for tensor in tensors)


def _note_joined(ctx: RuleContext, tensors: Sequence[Tensor], out: Tensor, dim: int, beside: Sequence[Axis]) -> None:
    """Record that what several layers made lies one behind another along a dimension, which a sum may run over.

    Where that is the dimension of their channels, the sum may run over the parts that a reshape makes of it.
    """
    if not ctx.wants_zeros:
        return
    distinct = list({id(tensor): tensor for tensor in tensors}.values())
    operands = [labels_of(tensor) for tensor in distinct]
    along = [has_own(ctx, operand, dim - out.dim()) for operand in operands if operand.origin is None]
    if sum(along) > 1 or are_added(ctx, distinct, operands, beside):
        labels_of(out).joined = frozenset({dim - out.dim()})


def _labels_or_outside(axis: Axis, size: int) -> Labels:
    return np.full(size, OUTSIDE, dtype=np.int64) if axis is None else axis


@rule("aten.stack")
def stack(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Stack tensors in a new dimension: equal positions must stay together; copies are an expanded dimension."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    axes = broadcast_axes(ctx, args[0], tuple(args[0][0].shape))
    axes.insert(dim, ctx.new_labels(len(args[0])) if _are_copies(args[0]) else None)
    ctx.label(outs[0], axes, zero=all(labels_of(t).zero for t in args[0]), nonzero=[axes[dim]])
    ctx.keep_truth(outs[0], [labels_of(tensor) for tensor in args[0]])
    _note_joined(ctx, args[0], outs[0], dim, [*axes[:dim], *axes[dim + 1 :]])
