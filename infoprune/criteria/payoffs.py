"""Losses and payoffs by name: the quality of a model's outputs, given the targets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infoprune.errors import ConfigurationError, DataError, nearest

Objective = Callable[[Any, Any], Tensor]
"""(outputs of the model, targets of the batch) -> a scalar loss, or one payoff an image."""


def fidelity(outputs: Any, whole: Any) -> Tensor:
    """Return the similarity to the whole network's outputs: 1 minus the squared distance over their squared length.

    Bounded: 1 for equal outputs, 0 for outputs as far away as zeros or farther.

    Args:
        outputs: Of the network without some channels: a tensor (images, ...), or tensors in lists, tuples and mappings.
        whole: Of the whole network, on the same images.

    Returns:
        (images,), in [0, 1].

    Raises:
        ConfigurationError: no floating-point tensors with a row for each image, or of other shapes in the two.

    Example:
        >>> fidelity(torch.tensor([[3.0, 4.0], [3.0, 0.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        tensor([1.0000, 0.3600])
    """
    some, all_ = _numbers(outputs), _numbers(whole)
    shapes = [[tuple(leaf.shape) for leaf in leaves] for leaves in (some, all_)]
    if not all_ or shapes[0] != shapes[1] or len({shape[0] for shape in shapes[1]}) > 1:
        raise ConfigurationError(
            "payoff 'fidelity' compares tensors of floating-point numbers with a row for each image; the model returns "
            f"{shapes[1] or 'none'} with all channels and {shapes[0] or 'none'} without some: choose another payoff"
        )
    left, aim = (torch.cat([leaf.reshape(len(leaf), -1).float() for leaf in leaves], dim=1) for leaves in (some, all_))
    length = aim.square().sum(dim=1).clamp(min=torch.finfo(aim.dtype).tiny)
    return (1 - (left - aim).square().sum(dim=1) / length).clamp(min=0)


def _numbers(outputs: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.dim()]


def probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of the true class, in [0, 1].

    Args:
        outputs: (N, C) logits.
        targets: (N,) classes.

    Returns:
        (N,) payoffs.
    """
    return outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the true class comes first, else 0.

    Args:
        outputs: (N, C) logits.
        targets: (N,) classes.

    Returns:
        (N,) payoffs.
    """
    return (outputs.argmax(dim=1) == targets).to(outputs.dtype)


def log_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return minus the cross-entropy. Not bounded: tiny coalitions, which pruning never visits, dominate it.

    Args:
        outputs: (N, C) logits.
        targets: (N,) classes.

    Returns:
        (N,) payoffs.
    """
    return -F.cross_entropy(outputs, targets, reduction="none")


LOSSES: dict[str, Objective] = {"cross_entropy": F.cross_entropy}
PAYOFFS: dict[str, Objective] = {
    "fidelity": fidelity,
    "probability": probability,
    "accuracy": accuracy,
    "log_probability": log_probability,
}


def get_objective(spec: str | Objective, known: dict[str, Objective], caller: str, option: str) -> Objective:
    """Return the function that ``spec`` names.

    Args:
        spec: A name in ``known``, the import path of a function (``"torch.nn.functional.mse_loss"``), or a function.
        known: The functions that have a short name.
        caller: Who asks, for messages.
        option: Name of the option, for messages.
    """
    if callable(spec):
        return spec
    if spec in known:
        return known[spec]
    module, _, name = str(spec).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{caller}: {option} {spec!r} is neither one of {', '.join(known)} nor the import path of a function"
            f"{nearest(str(spec), known)}"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{caller}: {option} {spec!r} is not a function")
    objective: Objective = found
    return objective


def evaluate(objective: Objective, outputs: Any, targets: Any, caller: str) -> Tensor:
    """Apply a loss or payoff to a batch.

    Args:
        objective: From outputs and targets to a loss, or to one payoff an image.
        outputs: What the model returns for a batch.
        targets: Those of the batch, None if it has none.
        caller: Who asks, for messages.

    Raises:
        DataError: the batch has no targets.
        ConfigurationError: targets that do not fit the outputs.
    """
    if targets is None:
        raise DataError(
            f"{caller}: the calibration batches have no targets; pass batches of (inputs, targets). In a fit, the "
            "LightningModule needs a forward that the training step calls with the inputs of a batch; else choose a "
            "criterion without targets"
        )
    try:
        return objective(outputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        name = getattr(objective, "__name__", type(objective).__name__)
        raise ConfigurationError(
            f"{caller}: {name} fails on outputs {_in_words(outputs)} and targets {_in_words(targets)}: "
            f"{type(error).__name__}: {error}; pass another function, or targets that fit"
        ) from error


def _in_words(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def check_payoffs(payoffs: Any, images: int, caller: str) -> Tensor:
    """Raise a ConfigurationError unless there is one finite payoff an image; return them as float64 on the CPU.

    Args:
        payoffs: What a payoff returned.
        images: Number of images in the batch.
        caller: Who asks, for messages.

    Returns:
        (images,) payoffs.
    """
    if not isinstance(payoffs, Tensor) or payoffs.shape != (images,):
        shape = tuple(payoffs.shape) if isinstance(payoffs, Tensor) else type(payoffs).__name__
        raise ConfigurationError(f"{caller}: a payoff must return one value an image, ({images},), not {shape}")
    if not torch.isfinite(payoffs).all():
        raise ConfigurationError(
            f"{caller}: the payoff of {int((~torch.isfinite(payoffs)).sum())} of {images} images is not finite"
        )
    return payoffs.detach().to("cpu", torch.float64)
