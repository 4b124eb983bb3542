"""Convolutions, matrix products, attention: summed dimensions meet, the others keep their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, labels_of
from infoprune.structure.tracing.rule_context import STILL_ADDS, RuleContext
from infoprune.structure.tracing.rules.elementwise import broadcast_axes
from infoprune.structure.tracing.rules.registry import rule, tensors_in

HEAD_WIDTH = "the head width sets the scale of attention"
"""Why the width of a head stays; whole heads may go."""


@rule("aten.convolution", "aten.convolution_overrideable", "aten._convolution", "aten.mkldnn_convolution")
def convolution(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind filters to output channels and kernels to input channels; groups keep equal widths or go as a whole."""
    labelled = any(axis is not None for axis in labels_of(args[0]).axes[2:])
    alone = _places_alone(args, outs[0]) if labelled else ()
    _convolve(ctx, args[0], args[1], args[2], outs[0], transposed=args[6], groups=args[8], alone=alone)


@rule("torchvision::deform_conv2d")
def deformable(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Treat it as a convolution; offsets and mask hold places, and inputs that share offsets stay equally many."""
    x, weight, offset, mask, bias = args[:5]
    groups, shared = args[11:13]
    for places in (offset, mask):
        ctx.freeze_all(labels_of(places).axes, "it holds the places that a deformable convolution reads")
    channels = labels_of(x).axes[1]
    if channels is not None and shared > 1:
        ctx.tie(channels.reshape(shared, -1))
    _convolve(ctx, x, weight, bias, outs[0], transposed=False, groups=groups)


def _places_alone(args: Sequence[Any], out: Tensor) -> list[bool]:
    """Return for each dimension in space whether every place of the result is computed from the same place alone."""
    x, weight = args[:2]
    rank = x.dim() - 2
    strides, padding = ([*numbers] * (rank if len(numbers) == 1 else 1) for numbers in args[3:5])
    sizes = zip(x.shape[2:], out.shape[2:], weight.shape[2:], strides, padding, strict=True)
    return [before == after and (kernel, stride, pad) == (1, 1, 0) for before, after, kernel, stride, pad in sizes]


def _convolve(
    ctx: RuleContext,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    transposed: bool,
    groups: int,
    alone: Sequence[bool] = (),
) -> None:
    fx, fw = labels_of(x), labels_of(weight)
    apart = alone or [False] * len(fx.axes[2:])
    places: list[Axis] = [axis if each else None for axis, each in zip(fx.axes[2:], apart, strict=True)]
    kept = [axis for axis in places if axis is not None]
    ctx.freeze_all(
        [axis for axis, stays in zip(fx.axes[2:], places, strict=True) if stays is None],
        "it is a spatial dimension of a convolution",
    )
    ctx.freeze_all(fw.axes[2:], None)
    reads, makes = (fw.axes[0], fw.axes[1]) if transposed else (fw.axes[1], fw.axes[0])
    whole_groups = False
    if ctx.choose("no groups", int(groups == 1)):
        wanted, channels = reads, makes
    else:
        wanted, channels, whole_groups = _grouped(ctx, fw, weight, groups, transposed)
    ctx.contract(fx, fx.axes[1], fw, wanted)
    # Filters of a group that reads nothing but zeros make zeros, whatever they are: constants, as of a blur.
    ctx.zeros_settled = whole_groups and fx.axes[1] is not None and fx.zero_along(fx.axes[1])
    zero = fw.zero or ctx.zeros_settled
    if bias is not None:
        channels = ctx.unite_all([channels, labels_of(bias).axes[0]])
        zero = zero and labels_of(bias).zero
    # What is removed along the batch, or of places, leaves the bias behind.
    nonzero = [axis for axis in (fx.axes[0], *kept) if bias is not None or not fx.zero_along(axis)]
    ctx.label(out, [fx.axes[0], channels, *places], zero=zero, nonzero=nonzero)
    dims = [(fx.axes[0], x.shape[0]), (fw.axes[0], weight.shape[0]), (fw.axes[1], weight.shape[1])]
    dims += zip(places, (x if transposed else out).shape[2:], strict=True)
    ctx.cost("conv", fw.origin, makes, [*dims, (None, math.prod(weight.shape[2:]))])


def _grouped(
    ctx: RuleContext, fw: TensorLabels, weight: Tensor, groups: int, transposed: bool
) -> tuple[Axis, Axis, bool]:
    """Return the labels that a grouped convolution reads and makes, and whether whole groups go.

    Either all groups lose equal positions, or whole groups go (depthwise convolutions among them): whichever leaves the
    finer choice. Weights are ``(filters, kernels a filter, ...)``, transposed ``(inputs, outputs a group, ...)``.
    """
    rows, columns = fw.axes[0], fw.axes[1]
    width = weight.shape[0] // groups
    per_group = width if transposed else weight.shape[1]
    positions = int(per_group >= groups)
    if ctx.choose("positions", *([positions, 1 - positions] if per_group > 1 else [positions])):
        if rows is not None:
            ctx.tie(rows.reshape(groups, width))
        tiled = None if columns is None else np.tile(columns, groups)
        return (rows, tiled, False) if transposed else (tiled, rows, False)
    ctx.freeze(columns, None)
    if rows is None:
        return None, None, True
    ctx.tie(rows.reshape(groups, width).T)
    ctx.note_counted(rows[::width])
    other = np.repeat(rows[::width], weight.shape[1])
    return (rows, other, True) if transposed else (other, rows, True)


@rule("aten.addmm")
def addmm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a linear layer with bias."""
    _matmul(ctx, args[1], args[2], outs[0], bias=args[0])


@rule("aten.mm")
def mm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a matrix product, among them linear layers without bias."""
    _matmul(ctx, args[0], args[1], outs[0])


@rule("aten.bmm")
def bmm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a product of batches of matrices."""
    _matmul(ctx, args[0], args[1], outs[0])


@rule("aten.baddbmm")
def baddbmm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a product of batches of matrices with an addend."""
    _matmul(ctx, args[1], args[2], outs[0], bias=args[0])


def _matmul(ctx: RuleContext, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Multiply ``(..., n, k) @ (..., k, m)``; a linear layer is this with ``b`` its transposed weight."""
    # The summed dimension: channels that are zero in one factor may go, and go in both.
    fa, fb = labels_of(a), labels_of(b)
    ctx.contract(fa, fa.axes[-1], fb, fb.axes[-2])
    batch = [ctx.unite_all([x, y]) for x, y in zip(fa.axes[:-2], fb.axes[:-2], strict=True)]
    rows, columns = fa.axes[-2], fb.axes[-1]
    axes: list[Axis] = [*batch, rows, columns]
    # A product is zero where one of its factors is; other dimensions do not become zero by a cut.
    nonzero = [axis for axis in batch if not (fa.zero_along(axis) or fb.zero_along(axis))]
    nonzero += [axis for axis, factor in ((rows, fa), (columns, fb)) if not factor.zero_along(axis)]
    if bias is not None:
        added = labels_of(bias)
        if bias.shape == out.shape[-1:]:  # as in all linear layers
            axes[-1] = ctx.unite_all([columns, added.axes[0]])
            nonzero += axes[:-1]  # a removed row leaves the bias behind
            nonzero += [] if added.zero else [axes[-1]]
        else:
            ctx.label(out, axes)
            axes = broadcast_axes(ctx, [out, bias], tuple(out.shape))
            nonzero += [axis for axis in axes if bias.shape != out.shape or not added.zero_along(axis)]
    ctx.label(out, axes, zero=True, nonzero=nonzero)
    # The factor made of parameters is the kernel, and its own dimension of the result holds the filters.
    filters = columns if fb.origin else rows if fa.origin else None
    if fa.origin and fb.origin and not ctx.are_filters(columns):
        filters = None  # two factors of a kernel (low-rank adapters), not a layer
    inner = fa.axes[-1] if fb.axes[-2] is None else fb.axes[-2]
    dims = zip([*batch, rows, columns, inner], [*out.shape, a.shape[-1]], strict=True)
    ctx.cost("linear" if fa.origin or fb.origin else "attention", fb.origin or fa.origin, filters, dims)


@rule("aten._trilinear")
def trilinear(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Multiply three tensors, each stretched along some dimensions, and sum over others: a bilinear layer."""
    factors = [labels_of(tensor) for tensor in args[:3]]
    stretched, summed = args[3:6], args[6]
    rank = args[0].dim() + len(args[3])
    sizes = [1] * rank
    axes: list[Axis] = []
    nonzero: list[Axis] = []
    for dim in range(rank):
        # Each factor lacks some dimensions of the product, so its own are counted without them.
        meeting = []
        for tensor, factor, new in zip(args[:3], factors, stretched, strict=True):
            if dim not in new:
                own = dim - sum(other < dim for other in new)
                sizes[dim] = tensor.shape[own]
                meeting.append((factor, factor.axes[own]))
        zero = any(axis is not None and factor.zero_along(axis) for factor, axis in meeting)
        # A sum is exact only if one factor is zero at what is removed.
        if dim in summed and not zero:
            ctx.freeze_all([axis for _, axis in meeting], STILL_ADDS)
        axes.append(ctx.unite_all([axis for _, axis in meeting]))
        nonzero += [] if zero else [axes[-1]]
    made = [axis for dim, axis in enumerate(axes) if dim not in summed]
    ctx.label(outs[0], made, zero=True, nonzero=nonzero)
    kernel = next((factor for factor in factors if factor.origin), None)
    filters = next((axis for axis in made if ctx.are_filters(axis)), None)
    ctx.cost("linear", kernel.origin if kernel else None, filters, zip(axes, sizes, strict=True))


@rule("aten.mv")
def mv(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a matrix times a vector; its cost is small and not counted."""
    fa, fb = labels_of(args[0]), labels_of(args[1])
    ctx.contract(fa, fa.axes[1], fb, fb.axes[0])
    ctx.label(outs[0], [fa.axes[0]], zero=fa.zero_along(fa.axes[0]))


@rule("aten.dot", "aten.vdot")
def dot(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind the sum over the products of two vectors."""
    fa, fb = labels_of(args[0]), labels_of(args[1])
    ctx.contract(fa, fa.axes[0], fb, fb.axes[0])
    ctx.label(outs[0], [])


@rule("aten.linear")
def linear(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Bind a linear layer, which only some backends show; elsewhere it is decomposed into addmm."""
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else None
    fx, fw = labels_of(x), labels_of(weight)
    ctx.contract(fx, fx.axes[-1], fw, fw.axes[1])
    columns, zero = fw.axes[0], fw.zero
    if bias is not None:
        columns, zero = ctx.unite_all([columns, labels_of(bias).axes[0]]), zero and labels_of(bias).zero
    nonzero = [axis for axis in fx.axes[:-1] if bias is not None or not fx.zero_along(axis)]
    ctx.label(outs[0], [*fx.axes[:-1], columns], zero=zero, nonzero=nonzero)
    dims = zip([*fx.axes[:-1], fw.axes[0], fw.axes[1]], [*outs[0].shape, x.shape[-1]], strict=True)
    ctx.cost("linear", fw.origin, fw.axes[0], dims)


@rule(
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable", "aten._scaled_dot_product_attention_math",
)  # fmt: skip
def attention(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Let whole heads go; the width of a head sets the softmax's scale, so it stays."""
    q, k, v = (labels_of(t) for t in args[:3])
    for operand in (q, k):
        ctx.freeze(operand.axes[-1], HEAD_WIDTH)
    for operand in (k, v):
        ctx.freeze(operand.axes[-2], "attention sums over it")
    for extra in tensors_in(args[3:], kwargs):
        ctx.freeze_all(labels_of(extra).axes, "it is an attention mask")
    heads = [
        ctx.unite_all([own, *(_shared(axis, size // shared) for axis in (of_k, of_v))])
        for own, of_k, of_v, size, shared in zip(
            q.axes[:-2], k.axes[:-2], v.axes[:-2], args[0].shape[:-2], args[1].shape[:-2], strict=True
        )
    ]
    queries, keys, width = (q.axes[-2], args[0].shape[-2]), (k.axes[-2], args[1].shape[-2]), args[0].shape[-1]
    parts = [*zip(heads, args[0].shape[:-2], strict=True), queries, keys]
    ctx.cost("attention", None, None, [*parts, (q.axes[-1], width)])
    ctx.cost("attention", None, None, [*parts, (v.axes[-1], args[2].shape[-1])])
    ctx.label(outs[0], [*heads, q.axes[-2], v.axes[-1]], zero=v.zero, nonzero=[q.axes[-2]])
    for out in outs[1:]:
        ctx.label(out, [None] * out.dim())


def _shared(axis: Axis, queries: int) -> Axis:
    """Return the labels of key or value heads, each of which serves so many query heads."""
    return axis if axis is None or queries == 1 else np.repeat(axis, queries)
