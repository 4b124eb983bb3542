"""Calibration batches of a fit: what the network receives when the training step gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infoprune.inputs import ByMode, Inputs
from infoprune.network_batches import NetworkBatches, split_like


class NetworkCalibration:
    """Calibration batches as ``(inputs, targets)``, with the inputs that the network receives in training.

    Most training steps hand a part of the batch to the network as it is; that part is found by its likeness to the
    example inputs (`NetworkBatches`). Where the step computes the inputs (it normalises, augments, draws noise), it is
    run on each batch and undone, and there are no targets.

    Args:
        batches: Batches as the training step receives them.
        example_inputs: What the network is traced on.
        receive: Runs the training step on a batch and returns what the network receives; None where it receives
            nothing.
    """

    def __init__(self, batches: Iterable[Any], example_inputs: Inputs, receive: Callable[[Any], Inputs | None]) -> None:
        self._batches = batches
        self._example = example_inputs.evaluation if isinstance(example_inputs, ByMode) else example_inputs
        self._receive = receive

    def __iter__(self) -> Iterator[Any]:
        computed: bool | None = None
        for number, batch in enumerate(self._batches):
            found = split_like(batch, self._example)
            received = None if computed is False else self._received(batch, seed=number)
            if computed is None:
                computed = received is not None and not _is_in(received, found)
            yield (received, None) if computed and received is not None else found

    def _received(self, batch: Any, seed: int) -> Inputs | None:
        """Run the step with random numbers of its own, so that all processes and all readings see the same inputs."""
        with isolate_rng():
            torch.manual_seed(seed)
            return self._receive(batch)

    @property
    def as_trained(self) -> NetworkBatches:
        """Return the same images as in training, where the data have them."""
        return NetworkBatches(self._batches, self._example).as_trained


def _is_in(received: Inputs, batch: Any) -> bool:
    """Return whether a batch begins with the very values that the network received."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    ours, theirs = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (inputs, received))
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
