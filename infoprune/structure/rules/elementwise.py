"""Element-wise operators and tensors that a model makes itself: labels at the same position go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.flow import Axis, Flow, get_flow
from infoprune.structure.op import Op
from infoprune.structure.rules.registry import POINTWISE, rule, tensors_in

# Element-wise operators that PyTorch does not tag as such.
_UNTAGGED = (
    "copy clone alias detach lift_fresh _to_copy masked_fill where prelu _prelu_kernel fill bernoulli native_dropout "
    "dropout hardswish hardsigmoid hardtanh relu6 leaky_relu silu mish elu celu selu gelu softplus softshrink "
    "hardshrink threshold log_sigmoid_forward rrelu rrelu_with_noise addcmul addcdiv lerp clamp zero"
)

# Element-wise operators f with f(0) = 0: a removed channel that is zero before them is zero behind them.
_KEEP_ZERO = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "gelu",
        "silu",
        "hardswish",
        "leaky_relu",
        "tanh",
        "mish",
        "elu",
        "celu",
        "selu",
        "prelu",
        "neg",
        "abs",
        "sqrt",
        "sin",
        "sinh",
        "asin",
        "atan",
        "erf",
        "sign",
        "sgn",
        "floor",
        "ceil",
        "round",
        "trunc",
        "square",
        "softshrink",
        "hardshrink",
        "tanhshrink",
        "clone",
        "alias",
        "detach",
        "lift_fresh",
        "contiguous",
        "_to_copy",
        "to",
        "positive",
        "nan_to_num",
        "dropout",
        "native_dropout",
        "expm1",
        "log1p",
        "relu_",
        "mul",
        "div",
    ]
)


def _stays_zero(op: Op, flows: Sequence[Flow]) -> bool:
    name = op.short_name
    if name == "mul":
        return any(flow.zero for flow in flows)
    if name == "div":
        return flows[0].zero
    if name == "copy":  # overwrites its first operand
        return flows[1].zero
    if name == "zero":
        return True
    if name in ("add", "sub", "maximum", "minimum") and len(flows) > 1:
        return all(flow.zero for flow in flows)
    return name in _KEEP_ZERO and all(flow.zero for flow in flows)


@rule(POINTWISE, *(f"aten.{name}" for name in _UNTAGGED.split()))
def elementwise(op: Op, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Labels at the same position go together, broadcasting included."""
    tensors = tensors_in(args, kwargs)
    flows = [get_flow(tensor) for tensor in tensors]
    zero, origin = _stays_zero(op, flows), flows[0].origin if len(flows) == 1 else None
    for out in outs:
        op.label(out, _broadcast(op, tensors, flows, out.shape), zero, origin)


def broadcast_axes(op: Op, tensors: Sequence[Tensor], shape: Sequence[int]) -> list[Axis]:
    """Axes of an element-wise result; a dimension of one that is stretched over many says nothing about them."""
    return _broadcast(op, tensors, [get_flow(tensor) for tensor in tensors], shape)


def _broadcast(op: Op, tensors: Sequence[Tensor], flows: Sequence[Flow], shape: Sequence[int]) -> list[Axis]:
    if len(flows) == 1 and tensors[0].shape == shape:
        return list(flows[0].axes)
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
