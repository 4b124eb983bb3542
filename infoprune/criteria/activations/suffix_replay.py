"""Run repeatedly only the part of a network behind a layer.

The model's own code runs each time, but under a torch function mode. The first run on a batch records what every call
before the layer's activation returned, and keeps those results that are still in use at that point. A replay answers
all those calls from memory (results that nobody uses any more are stand-ins of the right shape that take no memory),
changes the activation, and computes from there on. No model is rewritten, and whatever its forward does behind the
layer is done.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from infoprune.criteria.activations.tap import ActivationTap, OnActivation, Pending, is_query


class ReplayError(Exception):
    """A replay ran other operators than the recording."""


@dataclass(frozen=True)
class _Result:
    """A recorded result: whether a later call uses it, and its shape and dtype for a stand-in."""

    reference: weakref.ref[Tensor]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    kept: int | None = None

    @cached_property
    def stand_in(self) -> Tensor:
        """Return NaN where the dtype has it, so that a replay that needs the value fails visibly."""
        number = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full((), number, dtype=self.dtype, device=self.device).expand(self.shape)


@dataclass
class _Call:
    func: Any
    leaves: list[Any]
    spec: TreeSpec

    @property
    def is_forgotten(self) -> bool:
        """Return whether stand-ins answer this call, because no later call uses its results."""
        return all(not isinstance(leaf, _Result) or leaf.kept is None for leaf in self.leaves)


class Recording(ActivationTap):
    """One run of a model on a batch, recorded up to the first activation of some layers.

    Use it as a context around the run; afterwards :attr:`complete` tells whether such an activation was met.

    Args:
        weights: Parameters of the layers and the layers' names.
    """

    def __init__(self, weights: Mapping[nn.Parameter, str]) -> None:
        super().__init__(weights, lambda name, activation: None)
        self.weights = weights
        self.calls: list[_Call] = []
        self.kept: dict[int, Tensor] = {}
        self.waiting: list[tuple[str, int, int]] = []
        self.complete = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if not self.complete:
            leaves, spec = tree_flatten(output)
            self.calls.append(_Call(func, [_remember(leaf) for leaf in leaves], spec))
        return output

    def _hand_over(self, pending: Pending) -> None:
        if not self.complete:
            self._cut([pending, *self._pending.values()])
        super()._hand_over(pending)

    def _cut(self, waiting: list[Pending]) -> None:
        """Copy the results that are still in use, since later calls may write into them."""
        for call in self.calls:
            for position, leaf in enumerate(call.leaves):
                tensor = leaf.reference() if isinstance(leaf, _Result) else None
                if tensor is not None:
                    if id(tensor) not in self.kept:
                        self.kept[id(tensor)] = tensor.clone()
                    call.leaves[position] = _Result(leaf.reference, leaf.shape, leaf.dtype, leaf.device, id(tensor))
        self.waiting = [(pending.layer, id(pending.output), pending.stage) for pending in waiting]
        self.complete = True


def _remember(leaf: Any) -> Any:
    return _Result(weakref.ref(leaf), leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


class Replay(ActivationTap):
    """Run the model on the recorded batch with changed activations, and compute only what follows them.

    Use it as a context around the run.

    Args:
        recording: A complete recording.
        change: Called with a layer's name and its activation, which it changes in place.

    Raises:
        ReplayError: the run calls other functions than the recorded one did.
    """

    def __init__(self, recording: Recording, change: OnActivation) -> None:
        super().__init__(recording.weights, change)
        self._calls = recording.calls
        self._position = 0
        self._kept = recording.kept
        self._used: dict[int, Tensor] = {}
        for layer, key, stage in recording.waiting:
            output = self._tensor(key)
            self._pending[id(output)] = Pending(layer, output, stage)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._position == len(self._calls):
            return super().__torch_function__(func, types, args, kwargs)
        call = self._calls[self._position]
        self._position += 1
        if call.func != func:
            raise ReplayError(f"{func} was called where the recording has {call.func}")
        if is_query(func) and not any(isinstance(leaf, _Result) for leaf in call.leaves):
            return func(*args, **(kwargs or {}))
        return tree_unflatten([self._answer(leaf) for leaf in call.leaves], call.spec)

    def _answer(self, leaf: Any) -> Any:
        if not isinstance(leaf, _Result):
            return leaf
        return leaf.stand_in if leaf.kept is None else self._tensor(leaf.kept)

    def _tensor(self, key: int) -> Tensor:
        """Return one copy of a recorded tensor for each replay, so that shared tensors stay shared."""
        if key not in self._used:
            self._used[key] = self._kept[key].clone()
        return self._used[key]
