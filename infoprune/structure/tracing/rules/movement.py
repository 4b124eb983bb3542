"""Operators that take, move or repeat elements along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.labels import OUTSIDE, Labels
from infoprune.structure.labels.tensor_labels import Axis, labels_of, number_in
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules import statistics
from infoprune.structure.tracing.rules.registry import rule, unknown


def read_out(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze a tensor whose numbers the code reads: what it makes of them is not seen."""
    ctx.freeze_all(labels_of(args[0]).axes, "its numbers are read by code that is not traced")


@rule("aten.set")
def replaced(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label a tensor whose data is replaced like its new data; parameters keep what does not stay in its place."""
    if len(args) != 2 or not isinstance(args[1], Tensor):
        return unknown(ctx, args, kwargs, outs)
    own, new = labels_of(args[0]), labels_of(args[1])
    same = len(own.axes) == len(new.axes) and all(a is b for a, b in zip(own.axes, new.axes, strict=True))
    if own.origin is not None and not (same and new.zero and not new.nonzero):
        ctx.freeze_all([*own.axes, *new.axes], "replaces the data of a parameter or buffer")
    ctx.label(outs[0], new.axes, zero=new.zero, origin=own.origin and new.origin, nonzero=new.nonzero)
    statistics.carry(ctx, new, labels_of(outs[0]))


@rule("aten.slice")
def slice_(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label a part of one dimension."""
    operand = labels_of(args[0])
    dim, start, end, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    dim %= args[0].dim()
    size = args[0].shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    axes = list(operand.axes)
    axis = axes[dim]
    picks = axis is not None and last - first == 1 and (axis != axis[0]).any()
    if axis is not None and (first, last, step) != (0, size, 1):
        axes[dim] = None if picks else _sliced(ctx, axis, first, last, step)
    ctx.label(outs[0], axes, zero=operand.zero, origin=operand.origin)
    ctx.keep_truth(outs[0], [operand])
    if picks:
        statistics.pick(ctx, operand, labels_of(outs[0]), axis)


def _sliced(ctx: RuleContext, axis: Labels, start: int, stop: int, step: int) -> Labels:
    """Let one of several equal parts lose as many as the others; of every n-th index all n go together."""
    size, length = len(axis), stop - start
    if step > 1 and size % step == 0:
        ctx.tie(axis.reshape(-1, step).T)
    elif step == 1 and length and size % length == 0 and start % length == 0:
        ctx.balance(axis.reshape(-1, length))
    else:
        ctx.takes_by_place(axis)
    return axis[start:stop:step]


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.tensor_split")
def split(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Split one dimension into parts; equal parts must lose the same."""
    operand = labels_of(args[0])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    axis = operand.axes[dim]
    sizes = [out.shape[dim] for out in outs]
    if axis is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            ctx.balance(axis.reshape(len(sizes), -1))
        else:
            ctx.takes_by_place(axis)
    for out, end, size in zip(outs, accumulate(sizes), sizes, strict=True):
        axes = list(operand.axes)
        axes[dim] = None if axis is None else axis[end - size : end]
        ctx.label(out, axes, zero=operand.zero, origin=operand.origin)
        ctx.keep_truth(out, [operand])


@rule("aten.select", "aten.unbind")
def select(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Keep a dimension from which one index is picked by its number if the result is read: the numbers would change."""
    operand = labels_of(args[0])
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    for out in outs:
        ctx.label(out, [a for d, a in enumerate(operand.axes) if d != dim], zero=operand.zero, origin=operand.origin)
        ctx.keep_truth(out, [operand])
        statistics.pick(ctx, operand, labels_of(out), operand.axes[dim])


@rule("aten.flip")
def flip(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Reverse dimensions: exact for whatever is removed."""
    operand = labels_of(args[0])
    flipped = {d % args[0].dim() for d in args[1]}
    axes = [a[::-1] if d in flipped and a is not None else a for d, a in enumerate(operand.axes)]
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.rot90")
def rotate(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Turn two dimensions by quarters: reverse one or both, and exchange them."""
    operand = labels_of(args[0])
    quarters, dims = (list(args[1:]) + [1, (0, 1)][len(args) - 1 :])[:2]
    first, second = (dim % args[0].dim() for dim in dims)
    axes = list(operand.axes)
    for dim, quarter in ((first, 3), (second, 1)):
        if quarters % 4 in (2, quarter) and (axis := axes[dim]) is not None:
            axes[dim] = axis[::-1]
    if quarters % 2:
        axes[first], axes[second] = axes[second], axes[first]
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.diagonal")
def diagonal(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Take the entries at equal places of two dimensions, whose channels go together; the result has them last."""
    operand, rank = labels_of(args[0]), args[0].dim()
    given = dict(zip(("offset", "dim1", "dim2"), args[1:], strict=False)) | kwargs
    dims = [given.get("dim1", 0) % rank, given.get("dim2", 1) % rank]
    pair = [operand.axes[dim] for dim in dims]
    last: Axis = None
    if given.get("offset", 0) == 0 and args[0].shape[dims[0]] == args[0].shape[dims[1]]:
        last = ctx.unite_all(pair)
    else:
        ctx.freeze_all(pair, "diagonal takes it by places")
    beside = [axis for dim, axis in enumerate(operand.axes) if dim not in dims]
    ctx.label(outs[0], [*beside, last], zero=operand.zero, origin=operand.origin)


@rule("aten.tril", "aten.triu")
def triangle(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze the last two dimensions, of which places beside the diagonal are set to zero."""
    operand = labels_of(args[0])
    ctx.freeze_all(operand.axes[-2:], f"{ctx.short_name} takes places beside a diagonal")
    ctx.label(outs[0], [*operand.axes[:-2], None, None], zero=operand.zero)


@rule("aten.roll")
def roll(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Roll a dimension: exact only if the shift shrinks with it (half of it, say), which a dry run finds out."""
    operand = labels_of(args[0])
    dims = args[2] if len(args) > 2 else kwargs.get("dims", [])
    if not dims:
        ctx.freeze_all(operand.axes, "roll without dims moves entries from channel to channel")
        return ctx.label(outs[0], [None] * outs[0].dim())
    axes = list(operand.axes)
    for shift, dim in zip(args[1], dims, strict=True):
        axis = axes[dim]
        if axis is None:
            continue
        ctx.takes_by_place(axis)
        part = gcd(shift, len(axis))  # of which a shift that is computed from the width is a multiple
        if 1 < part < len(axis):
            ctx.tie(axis.reshape(-1, part))
        elif part == 1 < len(axis):
            ctx.freeze(axis, f"roll by {shift} of {len(axis)} channels")
        axes[dim] = np.roll(axis, shift)
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.constant_pad_nd")
def constant_pad(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label a padded dimension; its border stays, since the width of the border is a number in the model's code."""
    operand = labels_of(args[0])
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    axes = list(operand.axes)
    for i in range(0, len(args[1]), 2):
        dim = len(axes) - 1 - i // 2
        low, high = args[1][i], args[1][i + 1]
        axis = axes[dim]
        if axis is not None and (low or high):
            axis = axis[max(-low, 0) : len(axis) - max(-high, 0)]
            axes[dim] = np.pad(axis, (max(low, 0), max(high, 0)), constant_values=OUTSIDE)
    ctx.label(outs[0], axes, zero=operand.zero and value == 0)


@rule("aten.repeat", "aten.tile")
def repeat(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label copies of a tensor in a row; copies of a single index are an expanded dimension, as in `expand`."""
    operand = labels_of(args[0])
    times = list(args[1])
    before = [*[None] * (len(times) - len(operand.axes)), *operand.axes]
    times = [1] * (len(before) - len(times)) + times
    axes: list[Axis] = []
    stretched: list[Axis] = []
    for axis, n, size in zip(before, times, outs[0].shape, strict=True):
        # The same kernels for each channel.
        kernels = n > 1 and not axes and len(before) > 2 and ctx.is_of_buffer(axis)
        if kernels:
            ctx.freeze(axis, "belongs to a buffer that is repeated")
        if n > 1 and (size == n or kernels):
            copies = ctx.new_labels(n)
            stretched.append(None if copies is None else np.repeat(copies, size // n))
            axes.append(stretched[-1])
        else:
            axes.append(axis if axis is None or n == 1 else np.tile(axis, n))
    ctx.label(outs[0], axes, zero=operand.zero, nonzero=stretched)


@rule("aten.pixel_shuffle")
def pixel_shuffle(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Map ``(*, C r^2, H, W) -> (*, C, H r, W r)``: the r^2 channels that fill one output channel go together."""
    operand = labels_of(args[0])
    ctx.freeze_all(operand.axes[-2:], "space")
    axes = [*operand.axes[:-2], None, None]
    if axes[-3] is not None:
        square = args[1] ** 2
        ctx.tie(axes[-3].reshape(-1, square).T)
        axes[-3] = axes[-3][::square]
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Map ``(*, C, H r, W r) -> (*, C r^2, H, W)``: a channel becomes r^2 channels."""
    operand = labels_of(args[0])
    ctx.freeze_all(operand.axes[-2:], "space")
    axes = [*operand.axes[:-2], None, None]
    if axes[-3] is not None:
        axes[-3] = np.repeat(axes[-3], args[1] ** 2)
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label ``(groups, C / groups)`` transposed: all groups must lose the same."""
    operand = labels_of(args[0])
    axes = list(operand.axes)
    if axes[1] is not None:
        parts = axes[1].reshape(args[1], -1)
        ctx.tie(parts)
        axes[1] = parts.T.reshape(-1)
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.index")
def index(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze the dimensions that advanced indexing reads by number; the others are kept."""
    operand = labels_of(args[0])
    stretched: list[Axis] = []
    indexed: list[int] = []
    rest: list[tuple[bool, Axis]] = []
    rank = dim = 0
    for item in args[1]:
        width = 1 if item is None or item.dtype not in (torch.bool, torch.uint8) else item.dim()
        if item is None:
            rest.append((len(indexed) > 0, operand.axes[dim]))
        elif _repeats_one(args[0].shape[dim], args[1], item):
            stretched = [labels_or_new(ctx, item, d) for d in range(item.dim())]
            indexed.append(dim)
            rank = item.dim()
        else:
            ctx.freeze_all(operand.axes[dim : dim + width], "indexing picks channels by number")
            ctx.freeze_all(labels_of(item).axes, "its entries are channel numbers")
            rank = max(rank, 1 if width > 1 or item.dtype in (torch.bool, torch.uint8) else item.dim())
            indexed.extend(range(dim, dim + width))
        dim += width
    adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed))) if indexed else True
    before = [axis for behind, axis in rest if adjacent and not behind]
    after = [axis for behind, axis in rest if not adjacent or behind] + list(operand.axes[dim:])
    axes = before + (stretched or [None] * rank) + after
    fits = len(axes) == outs[0].dim()
    ctx.label(outs[0], axes if fits else [None] * outs[0].dim(), zero=operand.zero, nonzero=stretched)
    if len(axes) != outs[0].dim():
        ctx.freeze_all(operand.axes, "indexing in an unusual form")


def _repeats_one(size: int, indices: Sequence[Tensor | None], index: Tensor) -> bool:
    """Return whether an index takes the one entry of a dimension again and again, and no other index is given."""
    return size == 1 and index.dtype in (torch.int32, torch.int64) and sum(item is not None for item in indices) == 1


def labels_or_new(ctx: RuleContext, tensor: Tensor, dim: int) -> Axis:
    """Return the labels of what has one value for each entry of a tensor: its own, else new ones.

    Args:
        ctx: the operator's context.
        tensor: any tensor, of places say.
        dim: one of its dimensions.
    """
    axis, size = labels_of(tensor).axes[dim], tensor.shape[dim]
    return axis if axis is not None or size == 1 else ctx.new_labels(size)


@rule("aten.index_put")
def index_put(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Assign ``x[:, idx] = values``: the dimensions beside the indexed ones meet position by position."""
    operand, values = labels_of(args[0]), args[2]
    given = [index for index in args[1] if index is not None]
    first = next((dim for dim, index in enumerate(args[1]) if index is not None), 0)
    if any(index is None for index in args[1][first : first + len(given)]):
        return unknown(ctx, args, kwargs, outs)
    masks = [index.dtype in (torch.bool, torch.uint8) for index in given]
    behind = first + sum(index.dim() if mask else 1 for index, mask in zip(given, masks, strict=True))
    rank = max((1 if mask else index.dim() for index, mask in zip(given, masks, strict=True)), default=0)
    ctx.freeze_all(operand.axes[first:behind], "indexing picks channels by number")
    value_axes = labels_of(values).axes
    # The values are as wide as what they are written to; their dimensions are counted from the last.
    written = [*range(first), *[None] * rank, *range(behind, args[0].dim())]
    axes: list[Axis] = [None] * args[0].dim()
    for place, dim in enumerate(written):
        own = place - len(written) + values.dim()
        if dim is None:
            ctx.freeze_all(value_axes[own : own + 1] if own >= 0 else (), "indexing picks channels by number")
            continue
        meeting = [operand.axes[dim]]
        if own >= 0 and values.shape[own] == args[0].shape[dim]:
            meeting.append(value_axes[own])
        axes[dim] = ctx.unite_all(meeting)
    zero = operand.zero and (labels_of(values).zero or number_in(values) == 0)
    ctx.label(outs[0], axes, zero=zero)


@rule("aten.index_select", "aten.repeat_interleave", "aten.unfold")
def along_one_dimension(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze the dimension that an operator reads by number; the others are kept."""
    operand = labels_of(args[0])
    if len(args) < 2 or not any(isinstance(a, int) for a in args[1:]):
        return unknown(ctx, args, kwargs, outs)
    dim = next(a for a in args[1:] if isinstance(a, int)) % args[0].dim()
    if ctx.short_name == "index_select" and args[0].shape[dim] == 1 and args[2].dim() == 1:
        stretched = labels_or_new(ctx, args[2], 0)
        axes = [stretched if d == dim else a for d, a in enumerate(operand.axes)]
        return ctx.label(outs[0], axes, zero=operand.zero, nonzero=[stretched])
    ctx.freeze(operand.axes[dim], f"{ctx.short_name} reads channels by number")
    axes = [None if d == dim else a for d, a in enumerate(operand.axes)]
    ctx.label(outs[0], axes + [None] * (outs[0].dim() - len(axes)), zero=operand.zero)


@rule("aten.embedding")
def embedding(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Read rows of a table by number: the width of the table is a channel dimension."""
    operand = labels_of(args[0])
    ctx.freeze(operand.axes[0], None)  # rows are words, not channels
    ctx.freeze_all(labels_of(args[1]).axes, "its entries are numbers of embeddings")
    ctx.label(outs[0], [*[None] * args[1].dim(), operand.axes[1]], zero=operand.zero)
