"""Measure the unpruned model against the pruned one: validation and test metrics, latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.backends import Latency, latency
from infoprune.errors import CheckpointError
from infoprune.report.record import finite
from infoprune.structure.tensors import computed_tensors
from infoprune.weight_files import read_torch, write_torch

Metrics = dict[str, "float | None"]
_INSIDE = ("_modules", "_parameters", "_buffers")
_WATCHED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


class ValidationMetrics:
    """The metrics of the last validation, by name.

    A Trainer keeps the metrics of training and validation together; those that a validation measures are the ones that
    are new tensors at its end.
    """

    def __init__(self) -> None:
        self.metrics: Metrics = {}
        self._before: dict[str, Tensor] = {}

    def start(self, trainer: L.Trainer) -> None:
        """Save the metrics before a validation; call it when the validation starts.

        Args:
            trainer: the Trainer.
        """
        self._before = dict(trainer.callback_metrics)

    def end(self, trainer: L.Trainer) -> None:
        """Save the results of the validation; call it when the validation ends.

        Args:
            trainer: the Trainer.
        """
        measured = {k: v for k, v in trainer.callback_metrics.items() if self._before.get(k) is not v}
        self.metrics = {name: finite(float(value)) for name, value in measured.items() if value.numel() == 1}


class UnprunedSnapshot:
    """A copy on the CPU of all modules and tensors within a network.

    It can replace the network's later contents for a while. The LightningModule around the network, whose metrics,
    steps and optimizer settings often cannot be copied, stays as it is.

    Args:
        network: the network, not yet pruned.

    Attributes:
        network: the same object.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> kept = UnprunedSnapshot(net)
        >>> net[0] = nn.Linear(3, 4)
        >>> with kept.inside():
        ...     outputs = net(torch.ones(3))
        >>> bool((net(torch.ones(3)) == outputs).all())
        False
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._shell = nn.Module()
        # The memo lets children that point back at the network go on pointing at it.
        memo: dict[int, Any] = {id(network): network, **computed_tensors(network)}
        inside = copy.deepcopy({name: vars(network)[name] for name in _INSIDE}, memo)
        vars(self._shell).update(inside)
        self._shell.cpu()
        # Shrinking may rewrite such numbers (a width that forward divides by).
        self._numbers = {name: value for name, value in vars(network).items() if isinstance(value, (int, tuple))}

    def save(self, path: Path, module: nn.Module) -> None:
        """Write the copy to a file.

        Args:
            path: the file.
            module: the LightningModule that the network is part of.

        Raises:
            CheckpointError: the file cannot be written.
        """
        name = next(name for name, part in module.named_modules() if part is self.network)
        state = {key: value for key, value in self._shell.state_dict().items() if isinstance(value, Tensor)}
        write_torch(path, {"network": name, "state_dict": state})

    @classmethod
    def load(cls, path: Path, module: nn.Module) -> UnprunedSnapshot:
        """Read a file of `save`, for a LightningModule that has just been built and is not yet pruned.

        Args:
            path: the file.
            module: the LightningModule that the network is part of.

        Raises:
            CheckpointError: the file is damaged, or was written for another network.
        """
        content = read_torch(path)
        try:
            kept = cls(module.get_submodule(content["network"]))
            missing, _ = kept._shell.load_state_dict(content["state_dict"], strict=False)  # extra state is not kept
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or of another network: {error!s:.200}") from error
        tensors = {key for key, value in kept._shell.state_dict().items() if isinstance(value, Tensor)}
        if tensors.intersection(missing):
            raise CheckpointError(f"{path} is of another network: it has no {min(tensors.intersection(missing))}")
        return kept

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Give the network its unpruned contents, on its present device, until the end of the block."""
        device = next((tensor.device for tensor in self.network.parameters()), None)
        self._exchange()
        try:
            self.network.to(device)
            yield
        finally:
            self.network.cpu()
            self._exchange()

    def _exchange(self) -> None:
        mine, theirs = vars(self._shell), vars(self.network)
        for name in _INSIDE:
            mine[name], theirs[name] = theirs[name], mine[name]
        numbers: dict[str, Any] = {name: theirs[name] for name in self._numbers}
        theirs.update(self._numbers)
        self._numbers = numbers


def has_test(module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Return whether a module has a test step, and test data.

    Args:
        module: the LightningModule.
        datamodule: the data; None if the module has its own.
    """
    return _overrides(module, "test_step") and _overrides(datamodule or module, "test_dataloader")


def _overrides(thing: object, method: str) -> bool:
    """Return whether the user wrote a method that Lightning, under either of its names, has a stub for."""
    home = next(cls for cls in type(thing).__mro__ if method in vars(cls))
    return home.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")


def metrics_on_test_data(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Metrics:
    """Run a module over the test data and return the metrics that it logged.

    Args:
        trainer: the Trainer of the fit.
        module: the LightningModule, pruned or not.
        datamodule: the data; None if the module has its own.
    """
    results = trainer.test(module, datamodule=datamodule, verbose=False)
    return {name: finite(value) for result in results for name, value in result.items()}


@contextmanager
def only_progress(trainer: L.Trainer) -> Iterator[None]:
    """Disable a Trainer's loggers, and its callbacks except the progress bar, until the end of the block.

    Args:
        trainer: the Trainer.
    """
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    trainer.callbacks = [callback for callback in callbacks if isinstance(callback, ProgressBar)]  # type: ignore[attr-defined]
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]


def validate_now(trainer: L.Trainer) -> Metrics:
    """Run the validation in the middle of a fit, without loggers and without callbacks except the progress bar.

    The metrics that schedulers and callbacks watch, the progress counters and the random state of the fit are
    restored. A collective call: every process has to make it.

    Args:
        trainer: the Trainer, while it trains.

    Returns:
        The metrics of the validation, by name; empty if the fit has no validation.
    """
    if not trainer.enable_validation:
        return {}
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    counted = loop.batch_progress, loop.restarting, loop._has_run
    watched = {name: getattr(connector, name) for name in (*_WATCHED, "_first_loop_iter")}
    loop.batch_progress, loop.restarting = copy.deepcopy(loop.batch_progress), False
    for name in _WATCHED:
        setattr(connector, name, {})
    with isolate_rng(), only_progress(trainer):
        trainer.validating = True
        try:
            if trainer.val_dataloaders is None:
                loop.setup_data()
            loop.run()
            measured = dict(connector._callback_metrics)
        finally:
            trainer.training = True
            loop.batch_progress, loop.restarting, loop._has_run = counted
            vars(connector).update(watched)
    return {name: finite(float(value)) for name, value in measured.items() if value.numel() == 1}


def latencies(
    network: Callable[[], nn.Module], unpruned: UnprunedSnapshot, inputs: Any, device: torch.device, repeats: int
) -> tuple[Latency, Latency]:
    """Measure a network before and after pruning, in alternation, so that both run under the same load.

    Args:
        network: finds the network, which returns to its device at the end.
        unpruned: the unpruned contents of the network, or of a module around it.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        device: where to measure.
        repeats: forward passes of each.

    Returns:
        The latency before and after, each of the faster of two rounds.
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
