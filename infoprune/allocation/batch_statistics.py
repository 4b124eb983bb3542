"""Normalise by the statistics of the current batch in eval mode."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchStatistics(TorchFunctionMode):
    """Let every batch norm normalise by the current batch until the end of the block.

    The running statistics are neither read nor written, and nothing else of train mode applies: SyncBatchNorm does not
    communicate, dropout stays off. A channel with a single value has no variance and keeps the running statistics.

    Args:
        leave: ``id`` of the running means of those that go on normalising by their running statistics.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(1).eval()
        >>> with torch.no_grad(), BatchStatistics():
        ...     norm(torch.tensor([[1.0], [3.0]])).round().flatten().tolist()
        [-1.0, 1.0]
    """

    def __init__(self, leave: Collection[int] = ()) -> None:
        super().__init__()
        self._leave = leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not any(id(arg) in self._leave for arg in (*args[1:2], *kwargs.values())):
            return _by_the_batch(*args, **kwargs)
        return func(*args, **kwargs)


def _by_the_batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if input.numel() == input.shape[1]:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)
