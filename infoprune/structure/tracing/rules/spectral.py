"""Fourier transforms, and complex numbers as pairs of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules.registry import rule


@rule("aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c")
def fourier_transform(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Mix the dimensions that are transformed, which stay; the others keep their labels and zeros."""
    operand, rank = labels_of(args[0]), args[0].dim()
    mixed = {dim % rank for dim in args[1]}
    ctx.freeze_all([operand.axes[dim] for dim in mixed], "a Fourier transform runs over it")
    axes = [None if dim in mixed else axis for dim, axis in enumerate(operand.axes)]
    ctx.label(outs[0], axes, zero=operand.zero)


@rule("aten.view_as_real")
def view_as_real(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Show real and imaginary parts side by side in a new last dimension."""
    operand = labels_of(args[0])
    ctx.label(outs[0], [*operand.axes, None], zero=operand.zero, origin=operand.origin)


@rule("aten.view_as_complex")
def view_as_complex(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Take the last dimension for real and imaginary parts."""
    operand = labels_of(args[0])
    ctx.freeze(operand.axes[-1], None)
    ctx.label(outs[0], operand.axes[:-1], zero=operand.zero, origin=operand.origin)
