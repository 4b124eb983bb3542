"""Restore a model after a criterion has run on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from infoprune.calibration import evaluating
from infoprune.structure.module_state import attributes_restored


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; afterwards restore everything that code inside may have changed.

    These are weights, buffers, gradients, which parameters require gradients, train/eval flags, submodules, hooks and
    other attributes of modules, and the random state. A criterion may train the model, zero filters one by one, or
    run backward. Gradients start as None, so that those of a training step in progress are not added to.

    Args:
        model: any module; its parameters and buffers are copied once.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
        >>> with preserved(net):
        ...     net.train()(torch.randn(2, 3, 8, 8)).sum().backward()
        ...     net[0].weight.data.zero_()[0, 0, 0]
        tensor([0.])
        >>> int(net[1].num_batches_tracked), net[0].weight.grad, bool(net[0].weight.any())
        (0, None, True)
    """
    parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    kept = [_Kept(tensor) for tensor in (*model.buffers(), *model.parameters())]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        with attributes_restored(list(model.modules())), evaluating(model):
            yield
    finally:
        for tensor in kept:
            tensor.restore()
        for parameter, gradient, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


class _Kept:
    """A tensor of a model, where its values lie, and a copy of them."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._data = tensor.data
        self._copy = None if tensor.is_meta else tensor.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back; a tensor that still has them is not written to, as a backward pass may need it."""
        if self._tensor.data_ptr() != self._data.data_ptr() or self._tensor.dtype != self._data.dtype:
            self._tensor.data = self._data
        if self._copy is not None and not torch.equal(self._data, self._copy):
            self._data.copy_(self._copy)
