"""`NetworkCalibration`: calibration batches of a fit, with the inputs that the network receives in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infoprune.callbacks.engine.training_step import TrainingStep
from infoprune.inputs import ByMode, Inputs
from infoprune.network_batches import NetworkBatches, split_like


class NetworkCalibration:
    """Calibration batches as ``(inputs, targets)``, with the inputs that the network receives in training.

    Most training steps hand a part of the batch to the network as it is; that part is found by its likeness to the
    example inputs (`NetworkBatches`). Where the step computes the inputs (it normalises, augments, draws noise), it is
    run on each batch and undone, and there are no targets. That happens at once, because a criterion that has put hooks
    into the network would see the step's run too. Where no forward but the step itself is traced, it is what is run.

    Args:
        batches: Batches as the training step receives them.
        example_inputs: What the network is traced on.
        receive: runs the training step on a batch and returns the network's inputs; None if it receives none.
    """

    def __init__(self, batches: Iterable[Any], example_inputs: Inputs, receive: Callable[[Any], Inputs | None]) -> None:
        self._batches = batches
        self._example = example_inputs.evaluation if isinstance(example_inputs, ByMode) else example_inputs
        self._receive = receive
        self._computed = self._compute()

    def __iter__(self) -> Iterator[Any]:
        if self._computed is not None:
            return iter(self._computed)
        return (split_like(batch, self._example) for batch in self._batches)

    def _compute(self) -> list[Any] | None:
        """Return the inputs that the step computes; None if it hands a part of the first batch on unchanged."""
        if isinstance(self._example, TrainingStep):
            return [(TrainingStep(batch, self._example.owner, undone=True), None) for batch in self._batches]
        computed: list[Any] = []
        for number, batch in enumerate(self._batches):
            found, received = split_like(batch, self._example), self._received(batch, seed=number)
            if not computed and (received is None or _is_in(received, found)):
                return None
            computed.append(found if received is None else (received, None))
        return computed

    def _received(self, batch: Any, seed: int) -> Inputs | None:
        """Run the step with random numbers of its own, so that all processes and all readings see the same inputs."""
        with isolate_rng():
            torch.manual_seed(seed)
            return self._receive(batch)

    @property
    def as_trained(self) -> NetworkBatches | NetworkCalibration:
        """Return the same images as in training, where the data have them."""
        shown: Iterable[Any] = self._batches.as_trained  # type: ignore[attr-defined]
        if self._computed is None:
            return NetworkBatches(shown, self._example)
        return NetworkCalibration(shown, self._example, self._receive)


def _is_in(received: Inputs, batch: Any) -> bool:
    """Return whether a batch begins with the very values that the network received."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    ours, theirs = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (inputs, received))
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
