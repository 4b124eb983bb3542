"""`LocatedNetwork`: where the pruned network is in a LightningModule, and its example inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.callbacks.engine.calibration import NetworkCalibration
from infoprune.callbacks.engine.called_parts import called_parts
from infoprune.callbacks.engine.network_finder import COMPILED, NetworkFinder, given_inputs
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.callbacks.engine.step_check import StepCheck
from infoprune.callbacks.engine.training_data import peek
from infoprune.callbacks.engine.training_step import TrainingStep, WatchedStep, watch_training_step
from infoprune.errors import ConfigurationError, TraceError
from infoprune.inputs import ByMode
from infoprune.structure import Structure, trace
from infoprune.structure.tracing.frozen import frozen_names

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.inputs import Inputs

log = logging.getLogger(__name__)


class LocatedNetwork:
    """The network that a fit prunes.

    Args:
        options: ``module``, ``example_inputs`` and ``frozen`` say what is known before the fit.

    Attributes:
        path: path of the network in the LightningModule; None until it is known.
        inputs: the example inputs of the network; None until they are known.
        frozen: names and patterns of the layers that stay; layers given as modules are added once the network is known.
        watched: what the training step did on a batch; None until it was watched.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.path: str | None = options.module
        self.inputs: Inputs | None = None
        self.frozen = [entry for entry in options.frozen if isinstance(entry, str)]
        self.watched: WatchedStep | None = None
        self._options = options
        self._batch: Any = None  # the first training batch, where none could be had before

    def within(self, module: nn.Module) -> nn.Module:
        """Return the network within a LightningModule.

        Args:
            module: the LightningModule, or a copy of it.
        """
        return module.get_submodule(self.path or "")

    def wrapped_within(self, module: nn.Module) -> nn.Module:
        """Return the module that the LightningModule calls: the network, or ``torch.compile``'s wrapper around it.

        Args:
            module: the LightningModule.
        """
        return module.get_submodule((self.path or "").removesuffix(COMPILED).removesuffix("."))

    def takes_batch(self, batch: Any) -> bool:
        """Keep a training batch, unless an earlier one has shown what the training step runs.

        Args:
            batch: the batch that the training step is to receive.

        Returns:
            Whether the batch is kept.
        """
        if self.watched is not None or self._batch is not None:
            return False
        self._batch = batch
        return True

    @property
    def is_settled(self) -> bool:
        """Return whether `find` has nothing to add to what is known."""
        return self.inputs is not None and (self.watched is not None or self._batch is None)

    def find(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Watch a training step, and take the network and its inputs from it, or from what the user gave.

        If the training step uses the network in other ways than through its forward, the step is traced too.

        Args:
            trainer: the Trainer.
            module: the LightningModule.

        Raises:
            ConfigurationError: it is not clear which part is the network.
            TraceError: the forward fails on the example inputs.
        """
        options = self._options
        batch = peek(trainer) if self._batch is None else self._batch
        self.watched = None if batch is None else _watched_step(trainer, module, batch, options.module)
        finder = NetworkFinder(trainer, module, options.module)
        given = given_inputs(trainer, module, options.example_inputs)
        if given is not None:
            for_network = options.example_inputs is not None and options.module is not None
            self.path, self.inputs = finder.from_inputs(given, for_network)
        elif self.watched is not None:
            self.path, self.inputs = finder.from_step(self.watched, batch)
        elif self._batch is not None:
            self.path, self.inputs = finder.from_batch(batch)
        elif batch is not None:
            with suppress(ConfigurationError, TraceError):  # the first batch of training may tell more
                self.path, self.inputs = finder.from_batch(batch)
        if self.inputs is None:
            return
        self.frozen = frozen_names(self.within(module), options.frozen)
        is_step = isinstance(self.inputs, TrainingStep)
        if self.watched is not None and not is_step and self.watched.passes_by(module, self.path or ""):
            self.inputs = ByMode(self.inputs, TrainingStep(batch, module if self.path else None))

    def step_check(self, trainer: pl.Trainer, module: pl.LightningModule) -> StepCheck:
        """Run the training step on the first batch, so that it can be run again after a cut.

        Args:
            trainer: the Trainer.
            module: the LightningModule.
        """
        batch = self._batch if self._batch is not None else peek(trainer)
        return StepCheck(trainer, module, batch)

    def structure(self, module: pl.LightningModule, copies: Mapping[str, str | None]) -> Structure:
        """Trace the network as it is now.

        Args:
            module: the LightningModule.
            copies: within the network: path of a copy -> path of its original; None: the copy stays.
        """
        assert self.inputs is not None
        network = self.within(module)
        with torch.compiler.set_stance("force_eager"), OutsideState(module).restored():  # a step may be traced
            try:
                return trace(network, self.inputs, self.frozen, copies)
            except TraceError as error:
                parts = self._parts_of_step(network)
                if parts is None:
                    raise
                structure = trace(network, parts, self.frozen, copies)
                log.info(
                    "The training step cannot be traced, so that what the parts return that it calls stays: %s", error
                )
                self.inputs = parts
                return structure

    def _parts_of_step(self, network: nn.Module) -> Inputs | None:
        """Return example inputs that run the parts of a training step; None if the step is not traced or has none."""
        step = self.inputs.training if isinstance(self.inputs, ByMode) else self.inputs
        if not isinstance(step, TrainingStep) or self.watched is None:
            return None
        parts = called_parts(self.watched, network, self.path or "")
        if parts is None or not isinstance(self.inputs, ByMode):
            return parts
        return ByMode(self.inputs.evaluation, parts)

    def received(self, trainer: pl.Trainer, module: pl.LightningModule, batches: Iterable[Any]) -> Iterable[Any]:
        """Return batches with the inputs that the network receives in training.

        Args:
            trainer: the Trainer.
            module: the LightningModule, whose training step calls the network.
            batches: batches of its training data.
        """
        assert self.inputs is not None
        path = self.path or ""

        def receive(batch: Any) -> Inputs | None:
            step = _watched_step(trainer, module, batch, path)
            return None if step is None else step.inputs_of(path)

        return NetworkCalibration(batches, self.inputs, receive)


def _watched_step(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, path: str | None) -> WatchedStep | None:
    try:
        return watch_training_step(trainer, module, batch, path)
    except Exception as error:  # of the user's code, which may rely on hooks that have not run yet
        log.debug("The training step could not be watched: %s: %s", type(error).__name__, error)
        return None
