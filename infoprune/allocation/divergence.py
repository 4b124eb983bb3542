"""Measure how much information a changed model's outputs have lost of the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infoprune.errors import DataError

Distance = Callable[[Tensor, Tensor], Tensor]
"""From the original's output and the changed one's, both (N, ...), to one value for each of N images."""

PROBABILITIES_SUM_TO_ONE = 1e-3


def divergence_of_scores(original: Tensor, changed: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence, in nats, of class scores along dimension 1; mean over positions.

    Args:
        original: Class scores before the softmax, (N, classes, ...).
        changed: Those of the changed model, of the same shape.

    Returns:
        (N,) nats.

    >>> divergence_of_scores(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])).item() > 0
    True
    """
    p, q = F.log_softmax(original, dim=1), F.log_softmax(changed, dim=1)
    return (p.exp() * (p - q)).sum(dim=1).flatten(1).mean(dim=1) if p.dim() > 2 else (p.exp() * (p - q)).sum(dim=1)


def divergence_of_probabilities(original: Tensor, changed: Tensor) -> Tensor:
    """Return the divergence of outputs that are probabilities already.

    Args:
        original: Probabilities, (N, classes, ...).
        changed: Those of the changed model, of the same shape.

    Returns:
        (N,) nats.
    """
    least = torch.finfo(torch.float32).tiny
    return divergence_of_scores(original.clamp(min=least).log(), changed.clamp(min=least).log())


def divergence_of_labels(original: Tensor, changed: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence, in nats, of yes-or-no scores (before the sigmoid), summed over labels.

    Args:
        original: Scores before the sigmoid, (N, ...).
        changed: Those of the changed model, of the same shape.

    Returns:
        (N,) nats.
    """
    yes, no = F.logsigmoid(original), F.logsigmoid(-original)
    gap = yes.exp() * (yes - F.logsigmoid(changed)) + no.exp() * (no - F.logsigmoid(-changed))
    return gap.flatten(1).sum(dim=1)


def relative_error(original: Tensor, changed: Tensor) -> Tensor:
    """Return the squared error over the variance of the original's outputs across images, or over their square.

    Args:
        original: Outputs, (N, ...).
        changed: Those of the changed model, of the same shape.

    Returns:
        (N,) errors, without a unit.

    >>> relative_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])).tolist()
    [0.0, 1.0]

    Outputs without a dimension of images, (N,) or a single number, are compared value by value.
    """
    rows = len(original) if original.dim() else 1
    original, changed = original.reshape(rows, -1), changed.reshape(rows, -1)
    size = original.square().mean()
    spread = (original - original.mean(dim=0)).square().mean()
    scale = spread if spread > 1e-8 * size else size
    return (original - changed).square().mean(dim=1) / scale.clamp(min=torch.finfo(torch.float32).tiny)


def uninformed(distance: Distance, original: Tensor) -> Tensor:
    """Return the mean of the outputs over images: the same for every image, without information about it.

    The distance of the original's outputs from this mean is all the information about the images in the outputs; for
    class scores, it is the mutual information of image and class.

    Args:
        distance: How the outputs are compared, which determines how their mean is computed.
        original: The original's outputs, (N, ...).

    Returns:
        Outputs of the same shape.

    >>> certain = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    >>> divergence_of_scores(certain, uninformed(divergence_of_scores, certain)).exp()
    tensor([2., 2.])
    """
    least = torch.finfo(torch.float32).tiny
    if distance is divergence_of_scores:
        mean = original.softmax(dim=1).mean(dim=0).clamp(min=least).log()
    elif distance is divergence_of_labels:
        mean = original.sigmoid().mean(dim=0).logit(eps=1e-6)
    else:
        mean = original.mean(dim=0)
    return mean.expand_as(original)


NAMES: dict[Distance, str] = {
    divergence_of_scores: "KL divergence of class scores, in nats",
    divergence_of_probabilities: "KL divergence of class probabilities, in nats",
    divergence_of_labels: "KL divergence of yes-or-no labels, in nats",
    relative_error: "relative squared error",
}


def scored(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's outputs, in float32.

    Args:
        outputs: Any value that a forward returns.

    Raises:
        DataError: there is none.
    """
    found = [leaf.float() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        raise DataError("the model's outputs hold no floating-point tensor to compare: give the allocation an evaluate")
    return found


def distances_for(outputs: Sequence[Tensor], targets: Any, images: int) -> list[Distance]:
    """Choose for each output how to compare it.

    Whole-number targets that fit an output, (N,) to (N, C) or (N, H, W) to (N, C, H, W), make it class scores. Without
    targets a matrix (N, C) is taken for class scores. Targets of the output's own shape that are 0 or 1 make it labels.
    Everything else is compared by its relative error.

    Args:
        outputs: the output tensors, each (N, ...).
        targets: the targets of the batches; None if there are none.
        images: number N of images.

    Returns:
        One distance for each output.
    """
    wanted = [leaf for leaf in tree_leaves(targets) if isinstance(leaf, Tensor)]
    return [_distance_for(output, wanted, images) for output in outputs]


def _distance_for(output: Tensor, targets: Sequence[Tensor], images: int) -> Distance:
    if output.dim() < 2 or len(output) != images:
        return relative_error
    if _sums_to_one(output):
        return divergence_of_probabilities
    for target in targets:
        if not target.is_floating_point() and target.shape == (len(output), *output.shape[2:]) and output.shape[1] > 1:
            return divergence_of_scores
        if target.shape == output.shape and bool(((target == 0) | (target == 1)).all()):
            one_hot = output.shape[1] > 1 and bool((target.sum(dim=1) == 1).all())
            return divergence_of_scores if one_hot else divergence_of_labels
    return divergence_of_scores if not targets and output.dim() == 2 and output.shape[1] > 1 else relative_error


def _sums_to_one(output: Tensor) -> bool:
    if output.shape[1] < 2 or bool((output < 0).any()):
        return False
    return bool(((output.sum(dim=1) - 1).abs() < PROBABILITIES_SUM_TO_ONE).all())
