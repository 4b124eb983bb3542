"""Windows of an image as columns (``F.unfold``) and back (``F.fold``): each channel fills one block of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from infoprune.structure.labels.tensor_labels import Axis, labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules.registry import rule


@rule("aten.im2col")
def unfold(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Map ``(*, C, H, W) -> (*, C k, L)``: a channel becomes a block, one entry for each place of the window."""
    operand = labels_of(args[0])
    ctx.freeze_all(operand.axes[-2:], "windows are taken of it")
    channels = operand.axes[-3]
    block: Axis = None if channels is None else np.repeat(channels, prod(args[1]))
    ctx.label(outs[0], [*operand.axes[:-3], block, None], zero=operand.zero)


@rule("aten.col2im")
def fold(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Map ``(*, C k, L) -> (*, C, H, W)``: the places of a window go with their channel."""
    operand = labels_of(args[0])
    ctx.freeze(operand.axes[-1], "windows are put together along it")
    channels = operand.axes[-2]
    if channels is not None:
        blocks = channels.reshape(-1, prod(args[2]))
        ctx.tie(blocks.T)
        channels = blocks[:, 0]
    ctx.label(outs[0], [*operand.axes[:-2], channels, None, None], zero=operand.zero)
