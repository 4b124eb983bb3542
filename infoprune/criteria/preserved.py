"""Run a model for scores and leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from infoprune.criteria.calibration import evaluating


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; afterwards give back its train/eval flags, buffers, gradients and the random state.

    A criterion that runs the model forward and backward inside may ignore that it counts batches and leaves gradients.
    Gradients start as None, so that those of a training step in progress are not added to.

    Args:
        model: any module; its buffers are copied once.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
        >>> with preserved(net):
        ...     net.train()(torch.randn(2, 3, 8, 8)).sum().backward()
        >>> int(net[1].num_batches_tracked), net[0].weight.grad
        (0, None)
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with evaluating(model):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
