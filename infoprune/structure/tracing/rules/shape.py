"""Operators that change a tensor's shape and keep every element: labels follow their dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from torch import Tensor

from infoprune.structure.labels import Labels
from infoprune.structure.labels.components import LONG
from infoprune.structure.labels.tensor_labels import NOWHERE, Axis, TensorLabels, labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules import statistics
from infoprune.structure.tracing.rules.registry import rule, unknown

EMPTY = 1_000_003
"""An empty dimension counts as this size, which divides no other."""

MERGED = "two removable dimensions merge into one"
"""Why both stay where neither can lose an index without holes in the other."""


@rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.flatten", "aten.unflatten")
def reshape(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Merge and split dimensions; a labelled dimension that is split must lose the same in every part."""
    operand = labels_of(args[0])
    if outs[0].dtype != args[0].dtype:  # ``view(dtype)``: the same bits as numbers of another type
        kept = list(operand.axes)
        if outs[0].shape != args[0].shape:
            ctx.freeze(kept.pop(), "its numbers are read as numbers of another size")
            kept.append(None)
        whole = args[0].is_floating_point() and not (outs[0].is_floating_point() or outs[0].is_complex())
        return ctx.label(outs[0], kept, zero=operand.zero and not whole)  # the bits of -0.0 are no whole zero
    before, after = tuple(args[0].shape), tuple(outs[0].shape)
    _label_alike(ctx, operand, outs[0], reshape_axes(ctx, operand.axes, before, after))
    if operand.joined:
        labels_of(outs[0]).joined = frozenset(_joined_after(operand.joined, before, after))


def _joined_after(joined: frozenset[int], before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[int]:
    """Yield the dimensions along which several activations lie after a reshape: of those of a split, the outermost.

    >>> [*_joined_after(frozenset({-2}), (5, 16, 7), (5, 2, 8, 7))]
    [-3]
    """
    for ins, outs in _segments(before, after):
        wide = [d for d in outs if after[d] != 1]
        if wide and any(d - len(before) in joined for d in ins):
            yield wide[0] - len(after)


def _label_alike(
    ctx: RuleContext, operand: TensorLabels, out: Tensor, axes: Sequence[Axis], nonzero: Sequence[Axis] = ()
) -> None:
    """Label a result that holds the operand's elements in another shape: what is known of these holds of it, too."""
    ctx.label(out, axes, zero=operand.zero, origin=operand.origin, nonzero=nonzero)
    ctx.keep_truth(out, [operand])
    statistics.carry(ctx, operand, labels_of(out))


def reshape_axes(ctx: RuleContext, axes: Sequence[Axis], before: tuple[int, ...], after: tuple[int, ...]) -> list[Axis]:
    """Return the axes of a tensor of shape ``before`` once it has shape ``after``.

    Args:
        ctx: the operator's context; what cannot be followed is frozen there.
        axes: one for each dimension of ``before``.
        before: shape.
        after: shape with as many elements.

    Returns:
        One axis for each dimension of ``after``.
    """
    result: list[Axis] = [None] * len(after)
    if not any(axis is not None for axis in axes):
        return result
    merging: dict[int, dict[int, Labels]] = {}  # new dimension -> dimensions that it is made of, with their labels
    for ins, outs in _segments(before, after):
        # Sizes of nothing tell not which dimension has become which.
        if 0 in before and math.prod(before[d] or EMPTY for d in ins) != math.prod(after[d] or EMPTY for d in outs):
            ctx.freeze_all([axes[d] for d in ins], "is reshaped in a tensor without entries")
            continue
        wide_ins = [d for d in ins if before[d] != 1]
        wide_outs = [d for d in outs if after[d] != 1]
        # Nothing but dimensions of one comes or goes: the labels stay as they are.
        spread_before = any(_question(d) in ctx.record.choices for d in ins)  # a cut makes further dimensions of one
        if len(wide_ins) == len(wide_outs) == 1 and not spread_before:
            result[wide_outs[0]] = axes[wide_ins[0]]
            continue
        # Else spread the labels of one dimension over all elements, and see which new dimension they vary along.
        for dim in ins:
            axis = axes[dim]
            if axis is None or not outs:
                continue
            spread = _spread(axis, ins.index(dim), tuple(before[d] for d in ins), tuple(after[d] for d in outs))
            target, labels = _rectangle(ctx, axis, spread, outs, dim)
            if target is not None:
                merging.setdefault(target, {})[dim] = labels
    for target, parts in merging.items():
        result[target] = _merged(ctx, target, parts, before)
    return result


_long: WeakValueDictionary[tuple[bytes, int, tuple[int, ...]], Labels] = WeakValueDictionary()
"""Long arrays that are in use, such as those of a flattened map of scores, which every pass makes anew."""


def _spread(axis: Labels, place: int, before: tuple[int, ...], after: tuple[int, ...]) -> Labels:
    """Return the labels of one of the dimensions of a tensor of shape ``before`` for all its elements, reshaped."""
    if len(after) == 1 and len(axis) < LONG <= after[0]:
        key = axis.tobytes(), place, before
        if (known := _long.get(key)) is None:
            known = _long[key] = _spread_anew(axis, place, before, after)
        return known
    return _spread_anew(axis, place, before, after)


def _spread_anew(axis: Labels, place: int, before: tuple[int, ...], after: tuple[int, ...]) -> Labels:
    spread = axis.reshape([size if d == place else 1 for d, size in enumerate(before)])
    return (np.broadcast_to(spread, before) if len(before) > 1 else spread).reshape(after)


def _merged(ctx: RuleContext, target: int, parts: Mapping[int, Labels], before: tuple[int, ...]) -> Axis:
    """Return what is left of the labels of dimensions that merge into one: those of the largest removable one.

    Each of its indices stands for a whole row of the others, which then have to stay.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    made = {dim: labels for dim, labels in parts.items() if ctx.is_new(labels)}
    removable = {dim: labels for dim, labels in parts.items() if dim not in made} or made
    # The same kernels for each channel.
    if made and target == 0 and len(before) > 3 and all(map(ctx.is_of_buffer, removable.values())):
        ctx.freeze_all(list(removable.values()), "belongs to a buffer that is repeated")
        removable = made
    for labels in made.values() if removable is not made else ():
        ctx.freeze(labels, "its size is fixed where it merges with another dimension")
    # Of several that the code makes itself, any may be the one that follows another tensor's width.
    largest = sorted(removable, key=lambda dim: before[dim], reverse=True)
    keep = ctx.choose(f"kept of {target}", *(largest if removable is made else largest[:1]))
    for dim, labels in removable.items():
        if dim != keep:
            ctx.freeze(labels, MERGED)
    return removable.get(keep)


def _question(dim: int) -> str:
    """Return the name under which `RuleContext.choose` records where a dimension goes."""
    return f"place of {dim}"


@lru_cache(maxsize=1024)  # models repeat their shapes
def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> Sequence[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of dimensions with equal numbers of elements.

    >>> _segments((2, 12, 5), (2, 3, 4, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    before, after = (tuple(n or EMPTY for n in shape) for shape in (before, after))
    i = j = 0
    segments = []
    while i < len(before) or j < len(after):
        ins, outs, p, q = [], [], 1, 1
        while True:
            # Take a dimension from the side with fewer elements until both sides have equally many.
            if i < len(before) and (p <= q or j >= len(after)):
                p *= before[i]
                ins.append(i)
                i += 1
            elif j < len(after):
                q *= after[j]
                outs.append(j)
                j += 1
            if (p == q and ins and outs) or (i >= len(before) and j >= len(after)):
                break
        segments.append((ins, outs))
    return segments


def _rectangle(
    ctx: RuleContext, axis: Labels, spread: np.ndarray, outs: Sequence[int], dim: int
) -> tuple[int | None, Labels]:
    """Return where the labels of one axis vary, ``spread`` over the dimensions that it becomes, and these labels.

    If they vary along several dimensions, removing single indices would leave holes: the labels are tied so that they
    vary along one alone, the longest (equal positions of all parts go together: "balanced"), or that of whole heads.
    """
    varying = [d for d, size in enumerate(spread.shape) if size > 1 and _varies(spread.swapaxes(0, d))]
    question = _question(dim)
    if not varying and question not in ctx.record.choices:
        return None, axis  # one index only: it can never be removed
    if len(varying) < 2:
        target = ctx.choose(question, *(outs[d] for d in varying or [0]))
        return (target, _line(spread, outs.index(target))) if target in outs else (None, axis)
    counts = [len(set(_line(spread, d).tolist())) for d in varying]
    heads = [d for d, count in zip(varying[:-1], counts, strict=False) if (count, counts[-1]) in ctx.head_splits]
    longest = sorted(varying, key=lambda d: (spread.shape[d], d), reverse=True)
    target = ctx.choose(question, *(outs[d] for d in (heads[-1:] or longest)))
    if target not in outs:  # a dry run in which the code reshapes otherwise than it did
        return None, axis
    keep = outs.index(target)
    labels = _line(spread, keep)
    if not ctx.is_new(axis):
        ctx.note_split(counts)
    ctx.tie(np.moveaxis(spread, keep, -1).reshape(-1, spread.shape[keep]))
    if heads:
        ctx.note_heads(labels[np.sort(np.unique(labels, return_index=True)[1])])
    return target, labels


def _varies(rows: np.ndarray) -> bool:
    # Ends that differ are the usual case; comparing all rows of a detector's scores takes milliseconds.
    return bool((rows[-1] != rows[0]).any() or (rows[1:-1] != rows[0]).any())


def _line(spread: np.ndarray, dim: int) -> Labels:
    """Return the labels along one dimension, at the start of all others."""
    where: list[int | slice] = [0] * spread.ndim
    where[dim] = slice(None)
    line: Labels = spread if spread.ndim == 1 else spread[tuple(where)]
    return line


def _rearranged(ctx: RuleContext, args: Sequence[Any], outs: Sequence[Tensor], order: Sequence[int]) -> None:
    operand = labels_of(args[0])
    _label_alike(ctx, operand, outs[0], [operand.axes[d] for d in order])
    joined = (place - len(order) for place, d in enumerate(order) if d - args[0].dim() in operand.joined)
    labels_of(outs[0]).joined = frozenset(joined) if operand.joined else NOWHERE


@rule("aten.permute")
def permute(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Put the dimensions in another order."""
    _rearranged(ctx, args, outs, [d % args[0].dim() for d in args[1]])


@rule("aten.transpose", "aten.t", "aten.swapaxes", "aten.numpy_T", "aten.mT")
def transpose(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Exchange two dimensions."""
    rank = args[0].dim()
    order = list(range(rank))
    if rank > 1:
        a, b = (args[1] % rank, args[2] % rank) if len(args) == 3 else (0, 1)
        order[a], order[b] = order[b], order[a]
    _rearranged(ctx, args, outs, order)


@rule("aten.unsqueeze")
def unsqueeze(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label a new dimension of size one."""
    operand = labels_of(args[0])
    axes = list(operand.axes)
    axes.insert(args[1] % outs[0].dim(), None)
    _label_alike(ctx, operand, outs[0], axes)


@rule("aten.squeeze")
def squeeze(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Drop dimensions of one."""
    rank = args[0].dim()
    dims = range(rank) if len(args) == 1 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {d % rank for d in dims if args[0].shape[d] == 1} if rank else set()
    _rearranged(ctx, args, outs, [d for d in range(rank) if d not in gone])


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Stretch dimensions of one: uniform, they can shrink if the code asks for less, which a dry run tells."""
    operand, shape = labels_of(args[0]), outs[0].shape
    axes: list[Axis] = [*[None] * (len(shape) - args[0].dim()), *operand.axes]
    before = [*[1] * (len(shape) - args[0].dim()), *args[0].shape]
    axes = [ctx.new_labels(n) if n > was else a for a, was, n in zip(axes, before, shape, strict=True)]
    stretched = [axis for axis, was, n in zip(axes, before, shape, strict=True) if n > was]
    _label_alike(ctx, operand, outs[0], axes, nonzero=stretched)


@rule("aten.as_strided")
def as_strided(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Keep the labels if only the memory layout changes; a changed shape is unknown."""
    if ctx.name.endswith("as_strided_") or tuple(args[0].shape) == tuple(args[1]):
        _rearranged(ctx, args, outs, range(args[0].dim()))
    else:
        unknown(ctx, args, kwargs, outs)
