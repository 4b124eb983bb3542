"""Fake quantisation: rounding to the numbers that a quantised model has, as in quantisation-aware training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules.registry import rule, tensors_in

OF_EACH_CHANNEL = "has its own range for quantisation, which an observer keeps; prune before that is prepared"
"""Why channels stay that are quantised one by one: observers in the model hold a range of each, used or not."""

OF_ALL_CHANNELS = "is rounded by the range of all channels, which an observer measures; disable it to prune"
"""Why channels stay whose smallest and largest numbers decide how all of them are rounded."""


@rule(
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten.fake_quantize_per_tensor_affine", "aten._fake_quantize_learnable_per_tensor_affine",
)  # fmt: skip
def per_tensor(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Round all numbers alike; zero stays zero, whatever the scale."""
    operand = labels_of(args[0])
    for parameter in tensors_in(args[1:]):
        ctx.freeze_all(labels_of(parameter).axes, None)
    for out in outs:
        ctx.label(out, operand.axes, zero=operand.zero, nonzero=operand.nonzero)
    ctx.zeros_settled = True


@rule("aten.fake_quantize_per_channel_affine_cachemask", "aten._fake_quantize_learnable_per_channel_affine")
def per_channel(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Round each channel by a scale of its own."""
    _freeze(ctx, args, outs, OF_EACH_CHANNEL)


@rule("aten._fused_moving_avg_obs_fq_helper", "aten.fused_moving_avg_obs_fake_quant")
def observed(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Measure the range of a tensor, unless the observer is disabled, and round its numbers."""
    observer, for_each_channel = args[1], len(args) > 11 and args[11]
    if for_each_channel:
        _freeze(ctx, args, outs, OF_EACH_CHANNEL)
    elif observer.is_meta or observer.any():
        _freeze(ctx, args, outs, OF_ALL_CHANNELS)
    else:
        per_tensor(ctx, args, kwargs, outs)


def _freeze(ctx: RuleContext, args: Sequence[Any], outs: Sequence[Tensor], reason: str) -> None:
    for tensor in tensors_in(args):
        ctx.freeze_all(labels_of(tensor).axes, reason)
    for out in outs:
        ctx.label(out, [None] * out.dim())
