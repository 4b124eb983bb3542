"""Find the sum that a layer's outputs enter, directly or through batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from infoprune.allocation.suffix import Prefix, resume

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
BATCH_NORM_WEIGHT = 3
"""Its place among the arguments of ``F.batch_norm``; the bias comes next."""


@dataclass(frozen=True)
class FollowingSum:
    """The two tensors that a run adds after a layer.

    Attributes:
        own: the layer's outputs, after batch norm if there is one.
        other: the tensor that they are added to, of the same shape.
        norm: weight and bias of the batch norm between the layer and the sum; none: ``()``.
    """

    own: Tensor
    other: Tensor
    norm: tuple[Tensor, ...]


class _Ended(BaseException):
    """End a run at the sum. A BaseException, so that no model's code handles it."""


class _Follow(TorchFunctionMode):
    """Follow the outputs of the first call that uses a weight until another call than batch norm uses them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self._own: Tensor | None = None
        self._norm: tuple[Tensor, ...] = ()
        self.found: FollowingSum | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        uses_weight = self._own is None and any(leaf is self._weight for leaf in leaves)
        uses_own = self._own is not None and any(leaf is self._own for leaf in leaves)
        if uses_own and getattr(func, "__name__", "") in ADDITIONS:
            self._end_at_sum(leaves)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and uses_weight:
            self._own = output
        elif isinstance(output, Tensor) and uses_own:
            self._norm = _batch_norm_parameters(args, kwargs) if func is F.batch_norm and not self._norm else ()
            if not self._norm:
                raise _Ended
            self._own = output
        return output

    def _end_at_sum(self, leaves: list[Any]) -> None:
        """Record the sum of two tensors of one shape, if no factor scales it."""
        own = self._own
        others = [leaf for leaf in leaves if leaf is not own]
        if own is not None and len(others) == 1 and isinstance(others[0], Tensor) and others[0].shape == own.shape:
            self.found = FollowingSum(own, others[0], self._norm)
        raise _Ended


def _batch_norm_parameters(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    weight, bias = (
        kwargs.get(name, args[place] if place < len(args) else None)
        for place, name in enumerate(("weight", "bias"), BATCH_NORM_WEIGHT)
    )
    return (weight, bias) if isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter) else ()


def following_sum(model: nn.Module, inputs: Any, prefix: Prefix, weight: Tensor) -> FollowingSum | None:
    """Run a model from a layer to the sum that the layer's outputs enter; return None if they have another use.

    Args:
        model: In eval mode, without gradients.
        inputs: The batch that ``prefix`` was recorded on.
        prefix: What the run does before the layer.
        weight: The layer's.

    Raises:
        ReplayError: the run differs from the recorded one.

    Example:
        >>> import torch
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return x + self.layer(x)
        >>> block, x = Block(), torch.ones(3, 2)
        >>> with torch.no_grad():
        ...     found = following_sum(block, x, Prefix(), block.layer.weight)
        ...     found.other is x, torch.equal(found.own, block.layer(x))
        (True, True)
    """
    follow = _Follow(weight)
    try:
        with follow:
            resume(model, inputs, prefix)
    except _Ended:
        return follow.found
    return None
