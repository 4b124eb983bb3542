"""How each kind of operator carries, joins or mixes labels.

A rule is a small function ``rule(op, args, kwargs, outs)``: it reads the labels of the operator's tensors, says which
labels go together (:meth:`Op.unite`) or must stay (:meth:`Op.freeze`), and labels the results (:meth:`Op.label`). Rules
are found by the operator's name, ``"aten.cat"``; in-place variants share the rule of the plain operator. Operators
without a rule are never guessed at: whatever they touch is frozen.

Add a rule for an operator of your own::

    @infoprune.structure.rule("mylib::swap_halves")
    def swap_halves(op, args, kwargs, outs): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.flow import Axis, Flow, get_flow
from infoprune.structure.labels import OUTSIDE, Labels
from infoprune.structure.op import Op

Rule: TypeAlias = Callable[[Op, Sequence[Any], dict[str, Any], Sequence[Tensor]], None]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named ``"aten.add"`` or ``"namespace::name"``."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name.replace("::", ".")] = function
        return function

    return register


def find_rule(func: torch._ops.OpOverload) -> Rule:
    """The rule of an ATen operator: its own, its out-of-place variant's, the element-wise one, or `unknown`."""
    name = str(func.overloadpacket)
    plain = name[:-1] if name.endswith("_") else name
    found = RULES.get(name) or RULES.get(plain)
    if found is None and torch.Tag.pointwise in func.tags:
        found = elementwise
    return found or unknown


def unknown(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Never guess: what an unknown operator touches stays."""
    for tensor in tensors_in(args, kwargs):
        for axis in get_flow(tensor).axes:
            op.freeze(axis, f"{op.name} has no rule")
    for out in outs:
        op.label(out, [None] * out.dim())


def tensors_in(args: Iterable[Any], kwargs: dict[str, Any] | None = None) -> list[Tensor]:
    """All tensors among an operator's arguments, one level of lists deep."""
    found = []
    for value in [*args, *(kwargs or {}).values()]:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


# ---------------------------------------------------------------------------------------------- element by element

# Element-wise operators that PyTorch does not tag as such.
_UNTAGGED = (
    "copy clone alias detach lift_fresh _to_copy masked_fill where prelu _prelu_kernel fill bernoulli native_dropout dropout "
    "hardswish hardsigmoid hardtanh relu6 leaky_relu silu mish elu celu selu gelu softplus softshrink hardshrink threshold "
    "log_sigmoid_forward rrelu rrelu_with_noise addcmul addcdiv lerp clamp zero"
)

# Element-wise operators f with f(0) = 0: a removed channel that is zero before them is zero behind them.
_KEEP_ZERO = frozenset(
    ["relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "leaky_relu", "tanh", "mish", "elu", "celu", "selu", "prelu", "neg", "abs", "sqrt", "sin", "sinh", "asin", "atan", "erf", "sign", "sgn", "floor", "ceil", "round", "trunc", "square", "softshrink", "hardshrink", "tanhshrink", "clone", "alias", "detach", "lift_fresh", "contiguous", "_to_copy", "to", "positive", "nan_to_num", "dropout", "native_dropout", "expm1", "log1p", "relu_", "mul", "div"]
)


def _stays_zero(op: Op, tensors: Sequence[Tensor]) -> bool:
    name = op.short_name
    flows = [get_flow(t) for t in tensors]
    if name == "mul":
        return any(flow.zero for flow in flows)
    if name == "div":
        return flows[0].zero
    if name == "copy":  # overwrites its first operand
        return flows[1].zero
    if name == "zero":
        return True
    if name in ("add", "sub", "maximum", "minimum") and len(tensors) > 1:
        return all(flow.zero for flow in flows)
    return name in _KEEP_ZERO and all(flow.zero for flow in flows)


@rule(*(f"aten.{name}" for name in _UNTAGGED.split()))
def elementwise(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Labels at the same position go together, broadcasting included."""
    tensors = tensors_in(args, kwargs)
    zero = _stays_zero(op, tensors)
    for out in outs:
        axes = broadcast_axes(op, tensors, tuple(out.shape))
        op.label(out, axes, zero=zero, origin=get_flow(tensors[0]).origin if len(tensors) == 1 else None)


def broadcast_axes(op: Op, tensors: Sequence[Tensor], shape: tuple[int, ...]) -> list[Axis]:
    """Axes of an element-wise result; a dimension of one that is stretched over many says nothing about them."""
    flows = [get_flow(t) for t in tensors]
    axes: list[Axis] = []
    for dim, size in enumerate(shape):
        meeting = []
        for tensor, flow in zip(tensors, flows, strict=True):
            own = dim - len(shape) + tensor.dim()
            if own >= 0 and tensor.shape[own] == size:
                meeting.append(flow.axes[own])
        axes.append(op.unite_all(meeting))
    return axes


@rule(
    "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like",
)  # fmt: skip
def like(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """A new tensor of an existing one's shape shrinks with it."""
    op.label(outs[0], get_flow(args[0]).axes, zero=op.short_name == "zeros_like")


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.new_empty", "aten.rand", "aten.randn",
)  # fmt: skip
def created(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """A uniform tensor made by the model's code: it can shrink if the code asks for a smaller one (rehearsal tells)."""
    op.label(outs[0], [op.fresh(n) if n > 1 else None for n in outs[0].shape], zero="zeros" in op.name)


# -------------------------------------------------------------------------------------------------- moving elements


@rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.flatten", "aten.unflatten")
def reshape(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Merge and split dimensions; a labelled dimension that is split must lose the same in every part."""
    flow = get_flow(args[0])
    axes = reshape_axes(op, flow.axes, tuple(args[0].shape), tuple(outs[0].shape))
    op.label(outs[0], axes, zero=flow.zero, origin=flow.origin)


def reshape_axes(op: Op, axes: Sequence[Axis], before: tuple[int, ...], after: tuple[int, ...]) -> list[Axis]:
    result: list[Axis] = [None] * len(after)
    if not any(axis is not None for axis in axes):
        return result
    for ins, outs in _segments(before, after):
        wide_ins = [d for d in ins if before[d] != 1]
        wide_outs = [d for d in outs if after[d] != 1]
        if len(wide_ins) == len(wide_outs) == 1:
            result[wide_outs[0]] = axes[wide_ins[0]]
            continue
        for dim in ins:
            axis = axes[dim]
            if axis is None or not outs:
                continue
            moved = np.arange(before[dim]).reshape([before[d] if d == dim else 1 for d in ins])
            moved = np.broadcast_to(moved, [before[d] for d in ins]).reshape([after[d] for d in outs])
            where, labels = _rectangle(op, axis, moved)
            if where is None:
                continue
            target = outs[where]
            if result[target] is not None:
                op.freeze(axis, "two removable dimensions merge into one")
                op.freeze(result[target], "two removable dimensions merge into one")
                result[target] = None
            else:
                result[target] = labels
    return result


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> Iterable[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of dimensions with equal numbers of elements.

    >>> list(_segments((2, 12, 5), (2, 3, 4, 5)))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    # An empty dimension is as good as any size that divides nothing else.
    before, after = (tuple(n or 1_000_003 for n in shape) for shape in (before, after))
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs, p, q = [], [], 1, 1
        while True:
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
        yield ins, outs


def _rectangle(op: Op, axis: Labels, moved: np.ndarray) -> tuple[int | None, Labels]:
    """Where the indices ``moved`` of one axis vary, and their labels there.

    If they vary along several dimensions, removing single indices would leave holes: the labels are tied so that they
    vary along one alone, the longest (equal positions of all parts go together: "balanced").
    """
    varying = [d for d in range(moved.ndim) if moved.shape[d] > 1 and (moved != moved.take([0], axis=d)).any()]
    if not varying:
        return None, axis  # one index only: it can never be removed
    keep = op.choose(max(varying, key=lambda d: (moved.shape[d], d)))
    if keep >= moved.ndim:  # a rehearsal in which the code reshapes otherwise than it did
        return None, axis
    labels = axis[np.moveaxis(moved, keep, -1).reshape(-1, moved.shape[keep])]
    if len(varying) > 1:
        op.tie(labels)
    return keep, labels[0]


def _rearranged(op: Op, args: Sequence[Any], outs: Sequence[Tensor], order: Sequence[int]) -> None:
    flow = get_flow(args[0])
    op.label(outs[0], [flow.axes[d] for d in order], zero=flow.zero, origin=flow.origin)


@rule("aten.permute")
def permute(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    _rearranged(op, args, outs, [d % args[0].dim() for d in args[1]])


@rule("aten.transpose", "aten.t", "aten.swapaxes", "aten.numpy_T", "aten.mT")
def transpose(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    rank = args[0].dim()
    order = list(range(rank))
    if rank > 1:
        a, b = (args[1] % rank, args[2] % rank) if len(args) == 3 else (0, 1)
        order[a], order[b] = order[b], order[a]
    _rearranged(op, args, outs, order)


@rule("aten.unsqueeze")
def unsqueeze(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    flow = get_flow(args[0])
    axes = list(flow.axes)
    axes.insert(args[1] % outs[0].dim(), None)
    op.label(outs[0], axes, zero=flow.zero, origin=flow.origin)


@rule("aten.squeeze")
def squeeze(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    rank = args[0].dim()
    dims = range(rank) if len(args) == 1 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {d % rank for d in dims if args[0].shape[d] == 1} if rank else set()
    _rearranged(op, args, outs, [d for d in range(rank) if d not in gone])


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    flow = get_flow(args[0])
    op.label(outs[0], broadcast_axes(op, [args[0]], tuple(outs[0].shape)), zero=flow.zero, origin=flow.origin)


@rule("aten.as_strided")
def as_strided(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Only the memory layout changes if the shape does not; anything else is unknown."""
    if op.name.endswith("as_strided_") or tuple(args[0].shape) == tuple(args[1]):
        _rearranged(op, args, outs, range(args[0].dim()))
    else:
        unknown(op, args, kwargs, outs)


@rule("aten.slice")
def slice_(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
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
    """One of several equal parts, or every n-th index: the parts must lose the same, so equal positions are tied."""
    size, length = len(axis), stop - start
    if step > 1 and size % step == 0:
        op.tie(axis.reshape(-1, step).T)
    elif step == 1 and length and size % length == 0 and start % length == 0:
        op.tie(axis.reshape(-1, length))
    return axis[start:stop:step]


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.tensor_split")
def split(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    flow = get_flow(args[0])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    axis = flow.axes[dim]
    sizes = [out.shape[dim] for out in outs]
    if axis is not None and len(set(sizes)) == 1 and len(sizes) > 1:
        op.tie(axis.reshape(len(sizes), -1))
    ends = np.cumsum(sizes)
    for out, end, size in zip(outs, ends, sizes, strict=True):
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
            parts = [np.full(t.shape[d], OUTSIDE) if f.axes[d] is None else f.axes[d] for t, f in zip(tensors, flows, strict=True)]
            axes.append(np.concatenate(parts))
    op.label(outs[0], axes, zero=all(flow.zero for flow in flows))


@rule("aten.stack")
def stack(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    axes = broadcast_axes(op, args[0], tuple(args[0][0].shape))
    axes.insert(dim, None)
    op.label(outs[0], axes, zero=all(get_flow(t).zero for t in args[0]))


@rule("aten.flip")
def flip(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
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
        if axis is not None:
            axis = axis[max(-low, 0) : len(axis) - max(-high, 0)]
            axes[dim] = np.pad(axis, (max(low, 0), max(high, 0)), constant_values=OUTSIDE)
    op.label(outs[0], axes, zero=flow.zero and value == 0)


@rule("aten.repeat", "aten.tile")
def repeat(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    flow = get_flow(args[0])
    times = list(args[1])
    axes: list[Axis] = [None] * (len(times) - len(flow.axes)) + list(flow.axes)
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
    flow = get_flow(args[0])
    op.freeze_all(flow.axes[-2:], "space")
    axes = [*flow.axes[:-2], None, None]
    if axes[-3] is not None:
        axes[-3] = np.repeat(axes[-3], args[1] ** 2)
    op.label(outs[0], axes, zero=flow.zero)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
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
    indexed, rest, at, rank = [], [], None, 0
    dim = 0
    for item in args[1]:
        width = 1 if item is None or item.dtype not in (torch.bool, torch.uint8) else item.dim()
        if item is None:
            rest.append((len(indexed) > 0, flow.axes[dim]))
        else:
            op.freeze_all(flow.axes[dim : dim + width], "indexing picks channels by number")
            op.freeze_all(get_flow(item).axes, "its entries are channel numbers")
            rank = max(rank, 1 if width > 1 or item.dtype in (torch.bool, torch.uint8) else item.dim())
            indexed.extend(range(dim, dim + width))
            at = dim if at is None else at
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
    flow = get_flow(args[0])
    op.freeze(flow.axes[0], None)  # rows are words, not channels
    op.freeze_all(get_flow(args[1]).axes, "its entries are numbers of embeddings")
    op.label(outs[0], [*[None] * args[1].dim(), flow.axes[1]], zero=flow.zero)


# ------------------------------------------------------------------------------------------------------ contractions


@rule("aten.convolution", "aten.convolution_overrideable", "aten._convolution", "aten.mkldnn_convolution")
def convolution(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Filters become output channels, kernels meet input channels; groups keep equal widths or go as a whole."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    fx, fw = get_flow(x), get_flow(weight)
    op.freeze_all(fx.axes[2:], "it is a spatial dimension of a convolution")
    op.freeze_all(fw.axes[2:], None)
    reads, makes = (fw.axes[0], fw.axes[1]) if transposed else (fw.axes[1], fw.axes[0])
    if op.choose(int(groups == 1)):
        wanted, channels = reads, makes
    else:
        wanted, channels = _grouped(op, fw, weight, groups, transposed)
    op.contract(fx, fx.axes[1], fw, wanted)
    zero = fw.zero
    if bias is not None:
        channels = op.unite_all([channels, get_flow(bias).axes[0]])
        zero = zero and get_flow(bias).zero
    op.label(outs[0], [fx.axes[0], channels, *[None] * (outs[0].dim() - 2)], zero=zero)
    positions = x.numel() // x.shape[1] if transposed else outs[0].numel() // outs[0].shape[1]
    kernel = weight.numel() // (weight.shape[0] * weight.shape[1])
    op.cost(fw.origin, makes, positions * kernel, [(fw.axes[d], weight.shape[d]) for d in (0, 1)], kind="conv")


def _grouped(op: Op, fw: Flow, weight: Tensor, groups: int, transposed: bool) -> tuple[Axis, Axis]:
    """Labels that a grouped convolution reads and makes.

    Either all groups lose equal positions, or whole groups go (depthwise convolutions among them): whichever leaves the
    finer choice. Weights are ``(filters, kernels a filter, ...)``, transposed ``(inputs, outputs a group, ...)``.
    """
    rows, columns = fw.axes[0], fw.axes[1]
    width = weight.shape[0] // groups
    per_group = width if transposed else weight.shape[1]
    if op.choose(int(per_group >= groups)):
        if rows is not None:
            op.tie(rows.reshape(groups, width))
        tiled = None if columns is None else np.tile(columns, groups)
        return (rows, tiled) if transposed else (tiled, rows)
    op.freeze(columns, None)
    if rows is None:
        return None, None
    op.tie(rows.reshape(groups, width).T)
    other = np.repeat(rows[::width], weight.shape[1])
    return (rows, other) if transposed else (other, rows)


@rule("aten.addmm")
def addmm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    _matmul(op, args[1], args[2], outs[0], bias=args[0])


@rule("aten.mm")
def mm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    _matmul(op, args[0], args[1], outs[0])


@rule("aten.bmm")
def bmm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    _matmul(op, args[0], args[1], outs[0])


@rule("aten.baddbmm")
def baddbmm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    _matmul(op, args[1], args[2], outs[0], bias=args[0])


def _matmul(op: Op, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """``(..., n, k) @ (..., k, m)``; a linear layer is this with ``b`` its transposed weight."""
    fa, fb = get_flow(a), get_flow(b)
    op.contract(fa, fa.axes[-1], fb, fb.axes[-2])
    batch = [op.unite_all([x, y]) for x, y in zip(fa.axes[:-2], fb.axes[:-2], strict=True)]
    rows, columns = fa.axes[-2], fb.axes[-1]
    zero = (rows is None or fa.zero) and (columns is None or fb.zero)
    axes: list[Axis] = [*batch, rows, columns]
    if bias is not None:
        op.label(out, axes)
        axes = broadcast_axes(op, [out, bias], tuple(out.shape))
        zero = zero and get_flow(bias).zero
    op.label(out, axes, zero=zero)
    if fa.origin or fb.origin:
        origin, filters, other = (fb.origin, columns, a) if fb.origin else (fa.origin, rows, b)
        weight = b if fb.origin else a
        fw = get_flow(weight)
        positions = other.numel() // a.shape[-1] if a.shape[-1] else 0
        op.cost(origin, filters, positions, [(fw.axes[d], weight.shape[d]) for d in (-2, -1)], kind="linear")


@rule("aten.linear")
def linear(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Seen only where a backend has its own linear; elsewhere it comes apart into addmm."""
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else None
    fx, fw = get_flow(x), get_flow(weight)
    op.contract(fx, fx.axes[-1], fw, fw.axes[1])
    columns, zero = fw.axes[0], fw.zero
    if bias is not None:
        columns, zero = op.unite_all([columns, get_flow(bias).axes[0]]), zero and get_flow(bias).zero
    op.label(outs[0], [*fx.axes[:-1], columns], zero=zero)
    op.cost(fw.origin, fw.axes[0], x.numel() // x.shape[-1], [(fw.axes[d], weight.shape[d]) for d in (0, 1)], "linear")


@rule(
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable", "aten._scaled_dot_product_attention_math",
)  # fmt: skip
def attention(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Whole heads may go; the head width sets the softmax's scale, so it stays."""
    q, k, v = (get_flow(t) for t in args[:3])
    for flow in (q, k):
        op.freeze(flow.axes[-1], "the head width sets the scale of attention")
    for flow in (k, v):
        op.freeze(flow.axes[-2], "attention sums over it")
    for extra in tensors_in(args[3:], kwargs):
        op.freeze_all(get_flow(extra).axes, "it is an attention mask")
    if args[0].shape[:-2] != args[2].shape[:-2]:
        for flow in (q, k, v):
            op.freeze_all(flow.axes[:-2], "query and value heads differ in number")
        heads: list[Axis] = [None] * (outs[0].dim() - 2)
    else:
        heads = [op.unite_all([a, b, c]) for a, b, c in zip(q.axes[:-2], k.axes[:-2], v.axes[:-2], strict=True)]
    op.label(outs[0], [*heads, q.axes[-2], v.axes[-1]], zero=v.zero)
    for out in outs[1:]:
        op.label(out, [None] * out.dim())


# -------------------------------------------------------------------------------------------- normalise, reduce, pool


@rule(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training",
    "aten.cudnn_batch_norm", "aten.miopen_batch_norm", "aten._batch_norm_with_update",
    "aten._batch_norm_no_update", "aten.batch_norm",
)  # fmt: skip
def batch_norm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Each channel by itself: scale, shift and statistics belong to the channel."""
    flow = get_flow(args[0])
    own = [get_flow(t) for t in tensors_in(args[1:5])]
    axes = list(flow.axes)
    axes[1] = op.unite_all([axes[1], *(f.axes[0] for f in own)])
    affine = [get_flow(t) for t in args[1:3] if isinstance(t, Tensor)]
    op.label(outs[0], axes, zero=len(affine) == 2 and all(f.zero for f in affine))
    for out in outs[1:]:  # saved statistics: one number a channel, or nothing in eval mode
        per_channel = out.dim() == 1 and out.shape[0] == args[0].shape[1]
        op.label(out, [axes[1]] if per_channel else [None] * out.dim())


@rule("aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Statistics are taken over the channels that are kept; scale and shift belong to the channel."""
    flow = get_flow(args[0])
    axes = list(flow.axes)
    first = len(axes) - len(args[1])
    own = [get_flow(t) for t in tensors_in(args[2:4])]
    for d in range(first, len(axes)):
        axes[d] = op.unite_all([axes[d], *(f.axes[d - first] for f in own)])
    if sum(a is not None for a in axes[first:]) > 1:
        op.freeze_all(axes[first:], "layer norm over several removable dimensions")
    op.label(outs[0], axes, zero=bool(own) and all(f.zero for f in own))
    for out in outs[1:]:
        op.label(out, [None] * out.dim())


@rule("aten.native_group_norm")
def group_norm(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Groups keep equal widths: equal positions of all groups are tied."""
    flow, groups = get_flow(args[0]), args[6]
    own = [get_flow(t) for t in tensors_in(args[1:3])]
    axes = list(flow.axes)
    op.freeze_all(axes[2:], "it is a spatial dimension of a group norm")
    axes[1] = op.unite_all([axes[1], *(f.axes[0] for f in own)])
    if axes[1] is not None and groups > 1:
        op.tie(axes[1].reshape(groups, -1))
    op.label(outs[0], axes[:2] + [None] * (len(axes) - 2), zero=len(own) == 2 and all(f.zero for f in own))
    for out in outs[1:]:
        op.label(out, [None] * out.dim())


@rule(
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var", "aten.std", "aten.var_mean",
    "aten.prod", "aten.any", "aten.all", "aten.argmax", "aten.argmin", "aten.linalg_vector_norm", "aten.norm", "aten.logsumexp",
)  # fmt: skip
def reduction(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """A sum over removed channels is exact if they are zero; every other statistic over channels would change."""
    if len(tensors_in(args)) > 1:  # max(a, b), min(a, b)
        return elementwise(op, args, kwargs, outs)
    flow, rank = get_flow(args[0]), args[0].dim()
    dims = _reduced_dims(op, args, kwargs, rank)
    for d in dims:
        if not (op.short_name == "sum" and flow.zero):
            op.freeze(flow.axes[d], f"{op.short_name} over channels would change")
    keepdim = bool(rank) and outs[0].dim() == rank
    axes = [None if d in dims else a for d, a in enumerate(flow.axes) if keepdim or d not in dims]
    for out in outs:
        op.label(out, axes, zero=flow.zero and op.short_name in ("sum", "mean", "amax", "amin"))


def _reduced_dims(op: Op, args: Sequence[Any], kwargs: dict[str, Any], rank: int) -> set[int]:
    position = 2 if op.short_name in ("linalg_vector_norm", "norm") else 1
    dims = args[position] if len(args) > position else kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(rank))
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims)} if rank else set()


@rule(
    "aten._softmax", "aten._safe_softmax", "aten._log_softmax", "aten.softmax", "aten.log_softmax", "aten.cumsum", "aten.cumprod",
    "aten.sort", "aten.topk", "aten.argsort", "aten.glu",
)  # fmt: skip
def mixing_one_dimension(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Every result depends on the whole dimension, so it stays; the other dimensions ride along."""
    if op.short_name == "glu":
        return glu(op, args, kwargs, outs)
    flow, rank = get_flow(args[0]), args[0].dim()
    numbers = [a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    if op.short_name == "topk":
        numbers = numbers[1:]  # the first is k
    dim = (numbers[0] if numbers else kwargs.get("dim", -1)) % rank if rank else 0
    if rank:
        op.freeze(flow.axes[dim], f"{op.short_name} runs over channels")
    for out in outs:
        op.label(out, [None if d == dim else a for d, a in enumerate(flow.axes)])


def glu(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """``a * sigmoid(b)`` of the two halves: equal positions meet."""
    flow = get_flow(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % args[0].dim()
    axes = list(flow.axes)
    if axes[dim] is not None:
        halves = axes[dim].reshape(2, -1)
        op.tie(halves)
        axes[dim] = halves[0]
    op.label(outs[0], axes, zero=flow.zero)


def _spatial(rank: int) -> Rule:
    def apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
        flow = get_flow(args[0])
        op.freeze_all(flow.axes[-rank:], f"{op.short_name} runs over it")
        for out in outs:
            op.label(out, [*flow.axes[:-rank], *[None] * rank], zero=flow.zero)

    apply.__doc__ = f"Pooling, resampling and padding of the last {rank} dimensions; channels ride along."
    return apply


for _rank, _names in {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d "
    "reflection_pad1d replication_pad1d _upsample_nearest_exact1d",
    2: "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d "
    "reflection_pad2d replication_pad2d mkldnn_max_pool2d fractional_max_pool2d",
    3: "max_pool3d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d "
    "upsample_trilinear3d reflection_pad3d replication_pad3d _upsample_nearest_exact3d",
}.items():
    for _name in _names.split():
        RULES[f"aten.{_name}"] = _spatial(_rank)


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d", "torchvision::roi_align", "torchvision::ps_roi_align", "torchvision::roi_pool")
def sampler(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Samples every channel's map at given places."""
    if "ps_roi" in op.name:
        return unknown(op, args, kwargs, outs)
    flow = get_flow(args[0])
    op.freeze_all([flow.axes[0], *flow.axes[2:]], f"{op.short_name} reads it at given places")
    op.freeze_all(get_flow(args[1]).axes, "it holds places, not channels")
    for out in outs:
        axes = [None, flow.axes[1], *[None] * (out.dim() - 2)] if out.dim() >= 2 else [None] * out.dim()
        op.label(out, axes, zero=flow.zero)
