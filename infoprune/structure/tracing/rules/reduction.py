"""Normalisation, reduction, pooling and sampling: what changes one dimension and keeps the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules import statistics
from infoprune.structure.tracing.rules.elementwise import elementwise
from infoprune.structure.tracing.rules.registry import RULES, Rule, rule, tensors_in, unknown


@rule(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training",
    "aten.cudnn_batch_norm", "aten.miopen_batch_norm", "aten._batch_norm_with_update",
    "aten._batch_norm_no_update", "aten.batch_norm",
)  # fmt: skip
def batch_norm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Keep each channel by itself: scale, shift and statistics belong to the channel."""
    operand = labels_of(args[0])
    own = [labels_of(t) for t in tensors_in(args[1:5])]
    axes = list(operand.axes)
    axes[1] = ctx.unite_all([axes[1], *(f.axes[0] for f in own)])
    affine = [labels_of(t) for t in args[1:3] if isinstance(t, Tensor)]
    zero = len(affine) == 2 and all(f.zero for f in affine)
    of_kernel = operand.origin is not None and not isinstance(args[2], Tensor)  # to standardise it over what stays
    nonzero = [] if of_kernel else [axis for dim, axis in enumerate(axes) if dim != 1]
    # A channel of zeros has a mean of zero, and so has what the model has kept of it.
    unshifted = all(labels_of(t).zero for t in args[2:4] if isinstance(t, Tensor))
    ctx.label(outs[0], axes, zero=zero or (unshifted and operand.zero_along(operand.axes[1])), nonzero=nonzero)
    ctx.zeros_settled = zero  # scale and shift are zero, whatever the operand is
    for out in outs[1:]:  # saved statistics: one number a channel, or nothing in eval mode
        per_channel = out.dim() == 1 and out.shape[0] == args[0].shape[1]
        ctx.label(out, [axes[1]] if per_channel else [None] * out.dim())


@rule("aten._weight_norm_interface")
def weight_norm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Compute ``g v / |v|`` for each filter: what is removed adds nothing to the norms; lengths go with filters."""
    v, g = labels_of(args[0]), labels_of(args[1])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    axes = list(v.axes)
    axes[dim] = ctx.unite_all([axes[dim], g.axes[dim]])
    ctx.label(outs[0], axes, zero=v.zero)
    for out in outs[1:]:
        ctx.label(out, [axes[dim] if d == dim else None for d in range(out.dim())], zero=v.zero)


@rule("aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Take statistics over the channels that are kept; scale and shift belong to the channel."""
    operand = labels_of(args[0])
    axes = list(operand.axes)
    first = len(axes) - len(args[1])
    own = [labels_of(t) for t in tensors_in(args[2:4])]
    for d in range(first, len(axes)):
        axes[d] = ctx.unite_all([axes[d], *(f.axes[d - first] for f in own)])
    if sum(a is not None for a in axes[first:]) > 1:
        ctx.freeze_all(axes[first:], "layer norm over several removable dimensions")
    scaled = len(args) > 2 and isinstance(args[2], Tensor) and all(f.zero for f in own)
    shifted = len(args) > 3 and isinstance(args[3], Tensor)  # the shift stays behind
    nonzero = [axis for axis in axes[:first] if shifted or not operand.zero_along(axis)]
    nonzero += [] if scaled else axes[first:]
    ctx.label(outs[0], axes, zero=True, nonzero=nonzero)
    ctx.zeros_settled = scaled
    for out in outs[1:]:  # statistics, one for each row
        ctx.label(out, [*axes[:first], *[None] * (out.dim() - first)] if out.dim() >= first else [None] * out.dim())


@rule("aten.native_group_norm")
def group_norm(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Tie equal positions of all groups, so that groups keep equal widths."""
    operand, groups = labels_of(args[0]), args[6]
    own = [labels_of(t) for t in tensors_in(args[1:3])]
    axes = list(operand.axes)
    ctx.freeze_all(axes[2:], "it is a spatial dimension of a group norm")
    axes[1] = ctx.unite_all([axes[1], *(f.axes[0] for f in own)])
    if axes[1] is not None and 1 < groups < len(axes[1]):  # where every channel is a group, groups go with channels
        ctx.tie(axes[1].reshape(groups, -1))
    zero = len(own) == 2 and all(f.zero for f in own)
    alone = not own and groups == args[0].shape[1] and operand.zero_along(operand.axes[1])
    ctx.label(outs[0], axes[:2] + [None] * (len(axes) - 2), zero=zero or alone, nonzero=axes[:1])
    ctx.zeros_settled = zero
    for out in outs[1:]:  # statistics, one for each group
        ctx.label(out, [axes[0], axes[1] if axes[1] is not None and groups == len(axes[1]) else None])


SOFTMAX = "softmax runs over channels"
"""Why channels stay that share a softmax."""

_NORMS = frozenset({"linalg_vector_norm", "norm"})
_KEEP_ZERO = _NORMS | {
    "sum", "nansum", "mean", "prod", "amax", "amin", "max", "min", "aminmax", "std", "var", "std_mean", "var_mean",
}  # fmt: skip
_OF_NORMALISATIONS = frozenset({"mean", "var", "std", "var_mean", "std_mean"})
"""Statistics that normalisations are made of; they may be taken over the channels that stay."""

_SUMS = frozenset({"sum", "nansum", "mean"})
"""Reductions that add; a mean is a sum over a number."""

_OF_TRUTH = frozenset({"all", "prod", "amin", "min"})
"""Reductions of truth values that are true where all of them are."""

_POWERS: dict[str, tuple[float, ...]] = dict.fromkeys(["sum", "mean", "amax", "amin", "std", *_NORMS], (1.0,))
_POWERS |= {"nansum": (1.0,), "var": (2.0,), "var_mean": (2.0, 1.0), "std_mean": (1.0, 1.0)}
"""How each result scales with what it is taken of."""


@rule(
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var", "aten.std", "aten.var_mean",
    "aten.prod", "aten.any", "aten.all", "aten.argmax", "aten.argmin", "aten.linalg_vector_norm", "aten.norm",
    "aten.logsumexp", "aten.nansum", "aten.aminmax", "aten.std_mean",
)  # fmt: skip
def reduction(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Allow a sum or norm over channels that are zero once removed; freeze channels under other statistics."""
    if len(tensors_in(args)) > 1:  # max(a, b), min(a, b)
        return elementwise(ctx, args, kwargs, outs)
    operand, rank = labels_of(args[0]), args[0].dim()
    dims = reduced_dims(ctx.name, args, kwargs, rank)
    name, order = ctx.short_name, args[1] if ctx.short_name in _NORMS and len(args) > 1 else 2
    channels = [axis for d in dims if (axis := operand.axes[d]) is not None]
    # Removed channels are zero, which changes no sum and no norm of positive order; a mean divides by their number.
    exact = all(map(operand.zero_along, channels)) and (
        name in ("sum", "nansum", "any")
        or (name in _NORMS and isinstance(order, (int, float)) and order > 0)
        or (name in ("amax", "max") and operand.nonnegative)  # at least one channel stays, and is not below zero
    )
    exact |= name in _OF_TRUTH and all(map(operand.true_along, channels))
    over = [] if exact else channels
    keepdim = bool(rank) and outs[0].dim() == rank
    # A dimension kept with size one has no channels.
    axes = [None if d in dims else a for d, a in enumerate(operand.axes) if keepdim or d not in dims]
    if ctx.wants_zeros:
        ctx.record.adds = name in _SUMS and any(d - rank in operand.joined and operand.axes[d] is None for d in dims)
    # A mean of squares may turn out to be the statistic of a norm, which is exact over the channels that stay.
    powers = _POWERS.get(name, ()) if not over or name in _OF_NORMALISATIONS else ()
    for number, (out, power) in enumerate(zip_longest(outs, powers)):
        places = number > 0 and name in ("max", "min")
        ctx.label(out, axes, zero=operand.zero and name in _KEEP_ZERO and not places)
        if name in _OF_TRUTH and not number:
            ctx.keep_truth(out, [operand])
        lost = channels if places else over  # places change in any case
        if lost or operand.statistics or power is not None:
            statistics.take(ctx, operand, labels_of(out), power, lost)


def reduced_dims(name: str, args: Sequence[Any], kwargs: dict[str, Any], rank: int) -> set[int]:
    """Return the dimensions that a reduction sums over.

    Args:
        name: of the operator, such as ``"aten.sum"``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        rank: number of dimensions of its operand.

    Returns:
        Dimensions from 0 to ``rank - 1``; all of them where the operator names none.
    """
    position = 2 if name in ("aten.linalg_vector_norm", "aten.norm") else 1
    dims = args[position] if len(args) > position else kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(rank))
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims)} if rank else set()


@rule("aten._is_all_true", "aten._is_any_true", "aten._assert_async", "aten._assert_tensor_metadata")
def check(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze nothing: these are checks of PyTorch's own (of a distribution's parameters), which raise or do nothing."""
    for out in outs:
        ctx.label(out, [None] * out.dim())


_OF_ENTRIES = frozenset({"cumsum", "cummax", "cummin", "sort", "topk", "kthvalue", "mode", "median", "nanmedian"})
"""What picks or adds up entries, and so leaves zeros where all entries are zero."""


@rule(
    "aten._softmax", "aten._safe_softmax", "aten._log_softmax", "aten.softmax", "aten.log_softmax", "aten.cumsum",
    "aten.cumprod", "aten.cummax", "aten.cummin", "aten.logcumsumexp", "aten.sort", "aten.topk", "aten.argsort",
    "aten.glu", "aten.kthvalue", "aten.mode", "aten.median", "aten.nanmedian",
)  # fmt: skip
def mixing_one_dimension(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze the dimension, on all of which every result depends; the other dimensions are kept."""
    if ctx.short_name == "glu":
        return glu(ctx, args, kwargs, outs)
    operand, rank = labels_of(args[0]), args[0].dim()
    numbers = [a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    if ctx.short_name in ("topk", "kthvalue"):
        numbers = numbers[1:]  # the first is k
    if "median" in ctx.name and len(args) == 1:
        return reduction(ctx, args, kwargs, outs)
    dim = (numbers[0] if numbers else kwargs.get("dim", -1)) % rank if rank else 0
    if rank:
        ctx.freeze(operand.axes[dim], SOFTMAX if "softmax" in ctx.name else f"{ctx.short_name} runs over channels")
    for number, out in enumerate(outs):  # the second holds places
        axes = [None if d == dim else a for d, a in enumerate(operand.axes) if d != dim or out.dim() == rank]
        ctx.label(out, axes, zero=number == 0 and operand.zero and ctx.short_name in _OF_ENTRIES)


def glu(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Unite equal positions of the two halves of ``a * sigmoid(b)``.

    Args:
        ctx: the context of the call.
        args: the tensor, and the dimension that is halved.
        kwargs: ``dim``, if given by name.
        outs: the result, half as large along that dimension.
    """
    operand = labels_of(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % args[0].dim()
    axes = list(operand.axes)
    if axes[dim] is not None:
        halves = axes[dim].reshape(2, -1)
        ctx.tie(halves)
        axes[dim] = halves[0]
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten._cdist_forward", "aten._euclidean_dist")
def distances(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Compare the rows of two tensors: channels that are zero in both add nothing to a distance."""
    a, b = labels_of(args[0]), labels_of(args[1])
    if not (a.zero_along(a.axes[-1]) and b.zero_along(b.axes[-1])):
        ctx.freeze_all([a.axes[-1], b.axes[-1]], "what is removed would still add to a distance")
    ctx.unite_all([a.axes[-1], b.axes[-1]])
    batch = [ctx.unite_all([x, y]) for x, y in zip(a.axes[:-2], b.axes[:-2], strict=True)]
    ctx.label(outs[0], [*batch, a.axes[-2], b.axes[-2]])


def _spatial(rank: int) -> Rule:
    def apply(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
        operand = labels_of(args[0])
        ctx.freeze_all(operand.axes[-rank:], f"{ctx.short_name} runs over it")
        for number, out in enumerate(outs):  # the second holds places
            ctx.label(out, [*operand.axes[:-rank], *[None] * rank], zero=number == 0 and operand.zero)

    apply.__doc__ = f"Pooling, resampling and padding of the last {rank} dimensions; channels keep their labels."
    return apply


for _rank, _names in {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d "
    "reflection_pad1d replication_pad1d _upsample_nearest_exact1d",
    2: "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d "
    "reflection_pad2d replication_pad2d mkldnn_max_pool2d fractional_max_pool2d",
    3: "max_pool3d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d "
    "upsample_nearest3d "
    "upsample_trilinear3d reflection_pad3d replication_pad3d _upsample_nearest_exact3d",
}.items():
    for _name in _names.split():
        RULES[f"aten.{_name}"] = _spatial(_rank)


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Put every channel's maxima back at the places that its pooling has found."""
    values, places = labels_of(args[0]), labels_of(args[1])
    kept = len(values.axes) - (2 if ctx.short_name == "max_unpool2d" else 3)
    ctx.freeze_all([*values.axes[kept:], *places.axes[kept:]], f"{ctx.short_name} runs over it")
    axes = [ctx.unite_all(pair) for pair in zip(values.axes[:kept], places.axes[:kept], strict=True)]
    ctx.label(outs[0], [*axes, *[None] * (outs[0].dim() - kept)], zero=values.zero)


@rule(
    "aten.grid_sampler",
    "aten.grid_sampler_2d",
    "aten.grid_sampler_3d",
    "torchvision::roi_align",
    "torchvision::ps_roi_align",
    "torchvision::roi_pool",
)
def sampler(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Label samples of every channel's map at given places."""
    if "ps_roi" in ctx.name:
        return unknown(ctx, args, kwargs, outs)
    operand = labels_of(args[0])
    ctx.freeze_all([operand.axes[0], *operand.axes[2:]], f"{ctx.short_name} reads it at given places")
    ctx.freeze_all(labels_of(args[1]).axes, "it holds places, not channels")
    for out in outs:
        axes = [None, operand.axes[1], *[None] * (out.dim() - 2)] if out.dim() >= 2 else [None] * out.dim()
        ctx.label(out, axes, zero=operand.zero)
