"""Hold a batch with the recorded progress of a pruned model and its original on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infoprune.allocation.suffix import Prefix, advance
from infoprune.calibration import run
from infoprune.criteria.activations.suffix_replay import ReplayError
from infoprune.errors import DataError
from infoprune.reconstruction.following_sum import FollowingSum, following_sum

OWNER = "reconstruction"
Which = Literal["model", "original"]


class RecordedBatch:
    """A batch, and the recorded calls of both models on it up to the layer that is fitted.

    Args:
        inputs: The arguments of both models.
        models: The pruned model and its original.
    """

    def __init__(self, inputs: Any, models: dict[Which, nn.Module]) -> None:
        self.inputs = inputs
        self._models = models
        self._prefixes: dict[Which, Prefix] = {"model": Prefix(), "original": Prefix()}

    def inputs_of(self, name: str, which: Which, calls: int) -> list[Tensor]:
        """Return a layer's inputs: at its first use if it is called once, else at all calls.

        Args:
            name: the layer's.
            which: of the two models.
            calls: how often a run calls the layer.

        Raises:
            DataError: the layer gets values that are not finite.
        """
        seen = [] if calls > 1 else self._at_first_use(name, which)
        if not seen and calls:  # called several times, or its weight is used elsewhere before
            seen = self._at_all_calls(name, which)
        if not all(bool(torch.isfinite(inputs).all()) for inputs in seen):
            raise DataError(
                f"{OWNER}: the inputs of {name} are not finite on the given data: look at the images and the weights, "
                "or cut without reconstruction (reconstruction_batches=0)"
            )
        return seen

    def sum_behind(self, name: str, which: Which) -> FollowingSum | None:
        """Return the sum that a layer's outputs enter; it must be the layer whose inputs were requested last.

        Args:
            name: the layer's.
            which: of the two models.
        """
        model = self._models[which]
        weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        try:
            return following_sum(model, self.inputs, self._prefixes[which], weight)
        except ReplayError:
            return None

    def _at_all_calls(self, name: str, which: Which) -> list[Tensor]:
        model = self._models[which]
        with _inputs_seen(model.get_submodule(name)) as seen:
            run(model, self.inputs)
        return seen

    def _at_first_use(self, name: str, which: Which) -> list[Tensor]:
        """Run a model up to the first use of a layer."""
        model = self._models[which]
        layer = model.get_submodule(name)
        seen: list[Tensor] = []
        for prefix in (self._prefixes[which], Prefix()):  # from the start where the run cannot be resumed
            try:
                with _inputs_seen(layer) as seen:
                    reached = advance(model, self.inputs, prefix, [layer.weight])  # type: ignore[list-item]
            except ReplayError:
                continue
            if reached is None or not seen:
                return []
            if bool(torch.isfinite(seen[-1]).all()):
                self._prefixes[which] = reached
                break
        return seen[-1:]


@contextmanager
def _inputs_seen(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs that a layer gets in the block."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["input"])

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
