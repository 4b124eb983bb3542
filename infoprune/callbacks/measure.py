"""Measuring the unpruned model against the pruned one when the fit is over."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils._pytree import tree_map_only

from infoprune.cost import Latency, latency
from infoprune.report.record import finite
from infoprune.version import __version__

Metrics = dict[str, "float | None"]


def copy_module(module: L.LightningModule) -> L.LightningModule:
    """Return a copy of a LightningModule on the CPU, without its Trainer and the Trainer's data."""
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module).cpu()
    finally:
        module._trainer = trainer


def has_test(module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Return whether there is a test step, and test data for it."""
    data = is_overridden("test_dataloader", datamodule if datamodule is not None else module)
    return data and is_overridden("test_step", module)


def tested(trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None) -> Metrics:
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
    networks: tuple[nn.Module, nn.Module], inputs: Any, device: torch.device, repeats: int
) -> tuple[Latency, Latency]:
    """Measure two networks on a device, in turns so that both see the same weather; they return to where they were.

    Args:
        networks: unpruned and pruned.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        device: where to measure.
        repeats: forward passes of each network.
    """
    homes = [next((p.device for p in network.parameters()), device) for network in networks]
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
    try:
        for network in networks:
            network.to(device)
        rounds = [[latency(network, inputs, max(1, repeats // 2)) for network in networks] for _ in range(2)]
    finally:
        for network, home in zip(networks, homes, strict=True):
            network.to(home)
    unpruned, pruned = (min(both, key=lambda time: time.median) for both in zip(*rounds, strict=True))
    return unpruned, pruned


def device_name(device: torch.device) -> str:
    """Return a device's name as a person reads it.

    >>> device_name(torch.device("cpu")).startswith("cpu")
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} of {os.cpu_count()} cores)"
    return str(device)


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "infoprune": __version__,
    }
