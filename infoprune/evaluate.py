"""How well a model does, in one number: accuracy on labelled images, or how far its outputs have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from infoprune.calibration import batches, evaluating, run
from infoprune.errors import DataError
from infoprune.inputs import Inputs, call_model

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Measures a model; the first entry is the one that counts. Nothing of the model is changed."""


def accuracy(model: nn.Module, data: Iterable[Any], images: int | None = None) -> dict[str, float]:
    """Measure top-1 accuracy and cross-entropy of a classifier.

    Args:
        model: Maps images to logits (N, classes); run in eval mode, without gradients, on the device that it is on.
        data: Batches ``(images, labels)``.
        images: How many to use; all of them by default.

    Returns:
        ``{"accuracy": share in [0, 1], "loss": mean cross-entropy}``.

    Raises:
        DataError: there is no image, there are no labels, or the model cannot take the images.
    """
    right, loss, seen = 0, 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, targets, size in batches(model, data, images, "accuracy"):
            if not isinstance(targets, Tensor) or targets.dim() != 1:
                raise DataError("accuracy needs a label for every image: give batches (images, labels)")
            logits = run(model, inputs)
            right += int((logits.argmax(1) == targets).sum())
            loss += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            seen += size
    return {"accuracy": right / seen, "loss": loss / seen}


def output_change(model: nn.Module, inputs: Inputs) -> Evaluate:
    """Build a measure for models that came from ``model``: how far their outputs are from its own.

    Args:
        model: The model before; run once, now.
        inputs: What to run both on.

    Returns:
        A function that gives ``{"output_change": norm of the difference over the norm of the outputs}``; 0 is no
        change, 1 as far as no output at all.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> output_change(net, torch.ones(3, 4))(net)
        {'output_change': 0.0}
    """
    expected = _outputs(model, inputs)

    def measure(changed: nn.Module) -> dict[str, float]:
        away = (_outputs(changed, inputs) - expected).norm() / expected.norm().clamp(min=1e-12)
        return {"output_change": away.item()}

    return measure


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with evaluating(model), torch.no_grad():
        leaves = tree_flatten(call_model(model, inputs))[0]
    return torch.cat([leaf.flatten().double() for leaf in leaves if isinstance(leaf, Tensor)])
