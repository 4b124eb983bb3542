"""Measuring the unpruned model against the pruned one when the fit is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import nn
from torch.utils._pytree import tree_map_only

from infoprune.callbacks.unpruned import Unpruned
from infoprune.cost import Latency, latency
from infoprune.report.record import finite

Metrics = dict[str, "float | None"]


def has_test(module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Return whether there is a test step, and test data for it."""
    return _overrides(module, "test_step") and _overrides(datamodule or module, "test_dataloader")


def _overrides(thing: object, method: str) -> bool:
    """Return whether the user wrote a method that Lightning, under either of its names, has a stub for."""
    home = next(cls for cls in type(thing).__mro__ if method in vars(cls))
    return home.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")


def metrics_on_test_data(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Metrics:
    """Run a module over the test data and return what it logged."""
    results = trainer.test(module, datamodule=datamodule, verbose=False)
    return {name: finite(value) for result in results for name, value in result.items()}


@contextmanager
def only_progress(trainer: L.Trainer) -> Iterator[None]:
    """Let a Trainer work with no loggers and no callbacks but the progress bar, as on a model that is not its own."""
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    trainer.callbacks = [callback for callback in callbacks if isinstance(callback, ProgressBar)]  # type: ignore[attr-defined]
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]


def latencies(
    network: Callable[[], nn.Module], unpruned: Unpruned, inputs: Any, device: torch.device, repeats: int
) -> tuple[Latency, Latency]:
    """Measure a network as it was and as it is, in turns so that both see the same weather.

    Args:
        network: finds the network; it returns to the device that it is on.
        unpruned: what was inside of it, or of a module around it.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        device: where to measure.
        repeats: forward passes of each.

    Returns:
        The latency before and after, of the quicker of two rounds each.
    """
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)

    def measured() -> Latency:
        home = next((parameter.device for parameter in network().parameters()), device)
        network().to(device)
        try:
            return latency(network(), inputs, max(2, repeats // 2))
        finally:
            network().to(home)

    before, after = [], []
    for _ in range(2):
        with unpruned.inside():
            before.append(measured())
        after.append(measured())
    return min(before, key=lambda time: time.median), min(after, key=lambda time: time.median)
