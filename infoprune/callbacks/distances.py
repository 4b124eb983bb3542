"""Distances between a pruned network and its teacher, of outputs and of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune.errors import ConfigurationError


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² times the Kullback-Leibler divergence between class probabilities at temperature T, averaged.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Args:
        student: (N, classes, ...) logits; further dimensions (pixels, say) count as examples.
        teacher: logits of the same shape.
        temperature: divisor of both.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> soft_targets(logits, logits, 4.0).item()
    0.0
    """
    ours, theirs = (F.log_softmax(_at_least_single(logits) / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance between normalised attention maps, averaged over examples.

    An attention map is the mean over channels of the squared activation, so the two networks may differ in width.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.

    Args:
        student: (N, C, ...) activations with at least one dimension of space.
        teacher: (N, D, ...).

    >>> maps = torch.rand(2, 3, 4, 4)
    >>> attention(maps[:, :1].expand(2, 5, 4, 4), maps[:, :1]).item() < 1e-12
    True
    """
    ours, theirs = (F.normalize(_at_least_single(maps).square().mean(dim=1).flatten(1)) for maps in (student, teacher))
    return (ours - theirs).square().sum(dim=1).mean()


def squared_error(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean squared difference, for outputs that are not logits.

    Args:
        student: (N, ...) outputs of the network in training.
        teacher: outputs of the unpruned network, of the same shape.
        temperature: not used; all distances take it.
    """
    return F.mse_loss(_at_least_single(student), _at_least_single(teacher))


def _at_least_single(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": soft_targets, "mse": squared_error}


def check_alike(student: Tensor, teacher: Tensor) -> None:
    """Refuse outputs of different shapes.

    Args:
        student: outputs of the network in training.
        teacher: outputs of the unpruned network.

    Raises:
        ConfigurationError: names both shapes and what to do.
    """
    if student.shape != teacher.shape:
        raise ConfigurationError(
            f"Distillation: the network's output has shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}: freeze the layer that makes it, or compare another output=..."
        )


def hint_distance(name: str, student: Any, teacher: Any) -> Tensor:
    """Return the `attention` distance between a layer's outputs in both networks.

    Args:
        name: name of the layer, for the message.
        student: its output in the network in training.
        teacher: its output in the unpruned network.

    Raises:
        ConfigurationError: one of the two is no activation (N, C, ...) with a dimension of space.
    """
    for maps in (student, teacher):
        if not isinstance(maps, Tensor) or maps.dim() < 3:
            found = f"has shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else f"is a {type(maps).__name__}"
            raise ConfigurationError(
                f"Distillation: the hint {name!r} {found}; hints compare activations (N, C, ...) with at least one "
                "dimension of space, of layers that every call of the network runs"
            )
    return attention(student, teacher)
