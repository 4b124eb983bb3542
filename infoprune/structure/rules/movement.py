"""Operators that take, join, move or repeat elements along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.flow import Axis, get_flow
from infoprune.structure.labels import OUTSIDE, Labels
from infoprune.structure.op import Op
from infoprune.structure.rules.elementwise import broadcast_axes
from infoprune.structure.rules.registry import rule, unknown


@rule("aten.slice")
def slice_(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """A part of one dimension."""
    flow = get_flow(args[0])
    dim, start, end, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    dim %= args[0].dim()
    size = args[0].shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    axes = list(flow.axes)
    axis = axes[dim]
    if axis is not None and (first, last, step) != (0, size, 1):
        axes[dim] = _sliced(op, axis, first, last, step)
    op.label(outs[0], axes, zero=flow.zero, origin=flow.origin)


def _sliced(op: Op, axis: Labels, start: int, stop: int, step: int) -> Labels:
    """One of several equal parts must lose as many as the others; of every n-th index all n go together."""
    size, length = len(axis), stop - start
    if step > 1 and size % step == 0:
        op.tie(axis.reshape(-1, step).T)
    elif step == 1 and length and size % length == 0 and start % length == 0:
        op.balance(axis.reshape(-1, length))
    else:
        op.takes_by_place(axis)
    return axis[start:stop:step]


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.tensor_split")
def split(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Parts of one dimension; equal parts must lose the same."""
    flow = get_flow(args[0])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    axis = flow.axes[dim]
    sizes = [out.shape[dim] for out in outs]
    if axis is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            op.balance(axis.reshape(len(sizes), -1))
        else:
            op.takes_by_place(axis)
    for out, end, size in zip(outs, accumulate(sizes), sizes, strict=True):
        axes = list(flow.axes)
        axes[dim] = None if axis is None else axis[end - size : end]
        op.label(out, axes, zero=flow.zero, origin=flow.origin)


@rule("aten.select", "aten.unbind")
def select(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Picking one index by its number: the numbers of a removable dimension would change."""
    flow = get_flow(args[0])
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    op.freeze(flow.axes[dim], f"{op.short_name} picks channels by number")
    for out in outs:
        op.label(out, [a for d, a in enumerate(flow.axes) if d != dim], zero=flow.zero, origin=flow.origin)


@rule("aten.cat", "aten.concat")
def cat(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Tensors one behind the other: their labels likewise."""
    rank = outs[0].dim()
    tensors = [t for t in args[0] if t.dim() == rank]  # an old exception lets empty 1-D tensors join anything
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    flows = [get_flow(t) for t in tensors]
    axes: list[Axis] = []
    for d in range(rank):
        if d != dim:
            axes.append(op.unite_all([flow.axes[d] for flow in flows]))
        elif all(flow.axes[d] is None for flow in flows):
            axes.append(None)
        else:
            parts = [_labels_or_outside(f.axes[d], t.shape[d]) for t, f in zip(tensors, flows, strict=True)]
            axes.append(np.concatenate(parts))
    op.label(outs[0], axes, zero=all(flow.zero for flow in flows))


def _labels_or_outside(axis: Axis, size: int) -> Labels:
    return np.full(size, OUTSIDE, dtype=np.int64) if axis is None else axis


@rule("aten.stack")
def stack(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Tensors side by side in a new dimension: equal positions must stay together."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    axes = broadcast_axes(op, args[0], tuple(args[0][0].shape))
    axes.insert(dim, None)
    op.label(outs[0], axes, zero=all(get_flow(t).zero for t in args[0]))


@rule("aten.flip")
def flip(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Reversed dimensions: exact for whatever is removed."""
    flow = get_flow(args[0])
    flipped = {d % args[0].dim() for d in args[1]}
    axes = [a[::-1] if d in flipped and a is not None else a for d, a in enumerate(flow.axes)]
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.roll")
def roll(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Exact only if the shift shrinks with the dimension (half of it, say), which rehearsal finds out."""
    flow = get_flow(args[0])
    dims = args[2] if len(args) > 2 else kwargs.get("dims", [])
    if not dims:
        return unknown(op, args, kwargs, outs)
    axes = list(flow.axes)
    for shift, dim in zip(args[1], dims, strict=True):
        axis = axes[dim]
        if axis is None:
            continue
        part = shift % len(axis)
        if part and len(axis) % part == 0:
            op.tie(axis.reshape(-1, part))
        elif part:
            op.freeze(axis, f"roll by {shift} of {len(axis)} channels")
        axes[dim] = np.roll(axis, shift)
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.constant_pad_nd")
def constant_pad(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """The border is not ours to remove: its width is a number in the model's code."""
    flow = get_flow(args[0])
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    axes = list(flow.axes)
    for i in range(0, len(args[1]), 2):
        dim = len(axes) - 1 - i // 2
        low, high = args[1][i], args[1][i + 1]
        axis = axes[dim]
        if axis is not None and (low or high):
            axis = axis[max(-low, 0) : len(axis) - max(-high, 0)]
            axes[dim] = np.pad(axis, (max(low, 0), max(high, 0)), constant_values=OUTSIDE)
    op.label(outs[0], axes, zero=flow.zero and value == 0)


@rule("aten.repeat", "aten.tile")
def repeat(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Copies of a tensor one behind the other."""
    flow = get_flow(args[0])
    times = list(args[1])
    axes: list[Axis] = [*[None] * (len(times) - len(flow.axes)), *flow.axes]
    times = [1] * (len(axes) - len(times)) + times
    axes = [a if a is None or n == 1 else np.tile(a, n) for a, n in zip(axes, times, strict=True)]
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.pixel_shuffle")
def pixel_shuffle(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """``(*, C r^2, H, W) -> (*, C, H r, W r)``: the r^2 channels that fill one output channel go together."""
    flow = get_flow(args[0])
    op.freeze_all(flow.axes[-2:], "space")
    axes = [*flow.axes[:-2], None, None]
    if axes[-3] is not None:
        square = args[1] ** 2
        op.tie(axes[-3].reshape(-1, square).T)
        axes[-3] = axes[-3][::square]
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """``(*, C, H r, W r) -> (*, C r^2, H, W)``: a channel becomes r^2 channels."""
    flow = get_flow(args[0])
    op.freeze_all(flow.axes[-2:], "space")
    axes = [*flow.axes[:-2], None, None]
    if axes[-3] is not None:
        axes[-3] = np.repeat(axes[-3], args[1] ** 2)
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """``(groups, C / groups)`` transposed: all groups must lose the same."""
    flow = get_flow(args[0])
    axes = list(flow.axes)
    if axes[1] is not None:
        parts = axes[1].reshape(args[1], -1)
        op.tie(parts)
        axes[1] = parts.T.reshape(-1)
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.index")
def index(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Advanced indexing picks by number, so the dimensions that it reads stay; the others ride along."""
    flow = get_flow(args[0])
    indexed: list[int] = []
    rest: list[tuple[bool, Axis]] = []
    rank = dim = 0
    for item in args[1]:
        width = 1 if item is None or item.dtype not in (torch.bool, torch.uint8) else item.dim()
        if item is None:
            rest.append((len(indexed) > 0, flow.axes[dim]))
        else:
            op.freeze_all(flow.axes[dim : dim + width], "indexing picks channels by number")
            op.freeze_all(get_flow(item).axes, "its entries are channel numbers")
            rank = max(rank, 1 if width > 1 or item.dtype in (torch.bool, torch.uint8) else item.dim())
            indexed.extend(range(dim, dim + width))
        dim += width
    adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed))) if indexed else True
    before = [axis for behind, axis in rest if adjacent and not behind]
    after = [axis for behind, axis in rest if not adjacent or behind] + list(flow.axes[dim:])
    axes = before + [None] * rank + after
    op.label(outs[0], axes if len(axes) == outs[0].dim() else [None] * outs[0].dim(), zero=flow.zero)
    if len(axes) != outs[0].dim():
        op.freeze_all(flow.axes, "indexing in an unusual form")


@rule("aten.index_put")
def index_put(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """``x[idx] = values``: the dimensions behind the indexed ones meet position by position."""
    flow, values = get_flow(args[0]), args[2]
    leading = sum(1 if i is None or i.dtype not in (torch.bool, torch.uint8) else i.dim() for i in args[1])
    if any(i is None for i in args[1]):
        return unknown(op, args, kwargs, outs)
    op.freeze_all(flow.axes[:leading], "indexing picks channels by number")
    trailing = len(flow.axes) - leading
    value_axes = get_flow(values).axes
    op.freeze_all(value_axes[: max(len(value_axes) - trailing, 0)], "indexing picks channels by number")
    axes: list[Axis] = [None] * leading
    for d in range(leading, len(flow.axes)):
        own = d - len(flow.axes) + values.dim()
        meeting = [flow.axes[d]]
        if own >= 0 and values.shape[own] == args[0].shape[d]:
            meeting.append(value_axes[own])
        axes.append(op.unite_all(meeting))
    op.label(outs[0], axes, zero=flow.zero and get_flow(values).zero)


@rule("aten.index_select", "aten.gather", "aten.repeat_interleave", "aten.unfold")
def along_one_dimension(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Operators that read one dimension by number and leave the others alone."""
    flow = get_flow(args[0])
    if op.short_name == "gather" or len(args) < 2 or not any(isinstance(a, int) for a in args[1:]):
        return unknown(op, args, kwargs, outs)
    dim = next(a for a in args[1:] if isinstance(a, int)) % args[0].dim()
    op.freeze(flow.axes[dim], f"{op.short_name} reads channels by number")
    axes = [None if d == dim else a for d, a in enumerate(flow.axes)]
    op.label(outs[0], axes + [None] * (outs[0].dim() - len(axes)), zero=flow.zero)


@rule("aten.embedding")
def embedding(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Rows of a table by number: the width of the table is a channel dimension."""
    flow = get_flow(args[0])
    op.freeze(flow.axes[0], None)  # rows are words, not channels
    op.freeze_all(get_flow(args[1]).axes, "its entries are numbers of embeddings")
    op.label(outs[0], [*[None] * args[1].dim(), flow.axes[1]], zero=flow.zero)
