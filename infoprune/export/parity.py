"""Compare the outputs of an exported model with those of the original."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from infoprune.calibration import evaluating
from infoprune.errors import ExportError
from infoprune.inputs import Inputs, call_model
from infoprune.shapes import batch_size, with_batch

TOLERANCE = 1e-3
"""Largest difference of outputs, relative to the largest output, that counts as rounding (float32, fused kernels)."""


@dataclass(frozen=True)
class Parity:
    """How far an exported model's outputs are from the model's own.

    Attributes:
        max_error: largest difference, relative to the largest output.
        batches: batch sizes that were tried.
    """

    max_error: float
    batches: tuple[int, ...]


def compared(model: nn.Module, exported: Any, inputs: Inputs, dynamic_batch: bool, what: str) -> Parity:
    """Compare a model's outputs with those of its exported form, at two batch sizes if any is taken.

    Args:
        model: any module, in eval mode.
        exported: takes the inputs as one argument.
        inputs: example inputs.
        dynamic_batch: whether any batch size is taken.
        what: how messages refer to the exported form.

    Raises:
        ExportError: they differ by more than rounding.
    """
    sizes = (batch_size(inputs), batch_size(inputs) + 3) if dynamic_batch else (batch_size(inputs),)
    worst = 0.0
    for size in sizes:
        given = with_batch(inputs, size)
        with evaluating(model), torch.no_grad():
            expected = _tensors(call_model(model, given))
            actual = _tensors(exported(given))
        if len(expected) != len(actual):
            raise ExportError(f"the {what} has {len(actual)} outputs, the model {len(expected)}: it was not kept")
        worst = max([worst, *map(_difference, expected, actual)])
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the {what}'s outputs differ from the model's by {worst:.2g} of the largest output, more than "
            f"{TOLERANCE:g}: it was not kept"
        )
    return Parity(worst, sizes)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference, relative to the largest value; what is not finite has to be the same."""
    if expected.shape != actual.shape:
        return math.inf
    wide = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = expected.to(wide), actual.to(wide)
    same = (mine == theirs) | (mine.isnan() & theirs.isnan())
    if same.all():
        return 0.0
    largest = mine[mine.isfinite()].abs().max() if mine.isfinite().any() else mine.new_ones((), dtype=torch.float64)
    away = (mine - theirs)[~same].abs().max() / largest.clamp(min=1e-12)
    return away.nan_to_num(nan=math.inf, posinf=math.inf).item()


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf.cpu() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
