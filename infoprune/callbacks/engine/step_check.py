"""`StepCheck`: run the training step and the validation step before and after a cut."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from infoprune.callbacks.engine.gradient_hooks import run_gradient_hooks
from infoprune.callbacks.engine.training_data import peek_validation
from infoprune.callbacks.engine.training_step import WatchedStep, watch_training_step
from infoprune.callbacks.engine.validation_step import run_validation_step, validating
from infoprune.callbacks.engine.written_storages import storage_of
from infoprune.errors import SurgeryError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


class StepCheck:
    """Refuse a cut after which a step fails; without side effects, and with the same random numbers.

    A step that fails before the cut too, because it relies on hooks that have not run, say, is not run again.

    Args:
        trainer: the Trainer.
        module: its LightningModule, before the cut.
        batch: a training batch on its device; None if there is none: then the training step is not checked.

    Attributes:
        watched: what the training step did; None if it is not checked.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> None:
        self._trainer = trainer
        self._module = module
        self.watched: WatchedStep | None = None
        self._steps: list[tuple[str, Callable[[], object]]] = []
        if batch is not None:
            self._try("training step", partial(self._train, batch))
            self._try("hook of gradients", self._run_gradient_hooks)
        with validating(trainer), isolate_rng(self._on_gpu):
            batches = peek_validation(trainer)
        for number, one in enumerate(batches):
            if one is not None:
                loader = (number,) if len(batches) > 1 else ()
                self._try("validation step", partial(run_validation_step, trainer, module, one, *loader))

    def again(self, replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Run the steps on the cut model.

        Args:
            replaced: old parameters that are still whole, each with the one in its place.

        Raises:
            SurgeryError: one fails, or the training step still reads an old parameter.
        """
        watched = self.watched
        try:
            for name, run in self._steps:
                self._run_again(name, run)
            if self.watched is not watched and self.watched is not None:
                self._check_reads(self.watched.met.read, replaced)
        finally:
            self.watched = watched

    def _check_reads(self, read: Set[int], replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        stale = [names[id(new)] for old, new in replaced.items() if storage_of(old) in read and id(new) in names]
        if stale:
            more = f" and {len(stale) - 1} others" if len(stale) > 1 else ""
            raise SurgeryError(
                f"the training step of {type(self._module).__name__} would go on reading {stale[0]}{more} as they were "
                "before the cut, through a function or a state dict that holds them: read them from the model in each "
                "step, or hold them in a list or dict on the module. Nothing was changed"
            )

    def _run_again(self, name: str, run: Callable[[], object]) -> None:
        try:
            self._isolated(run)
        except torch.OutOfMemoryError:
            log.warning("The %s could not be checked after the cut: no memory for it", name)
        except Exception as error:
            raise self._failure(name, error) from error

    def _try(self, name: str, run: Callable[[], object]) -> None:
        try:
            self._isolated(run)
        except Exception as error:  # of the user's code
            log.debug("The %s could not be run: %s: %s", name, type(error).__name__, error)
        else:
            self._steps.append((name, run))

    def _run_gradient_hooks(self) -> None:
        met = run_gradient_hooks(self._trainer, self._module)
        if met and self.watched is not None:
            self.watched.met = replace(self.watched.met, memory={**self.watched.met.memory, **met})

    def _train(self, batch: Any) -> None:
        self.watched = watch_training_step(self._trainer, self._module, batch)

    def _isolated(self, run: Callable[[], object]) -> None:
        with isolate_rng(self._on_gpu):
            run()

    @property
    def _on_gpu(self) -> bool:
        return bool(self._trainer.strategy.root_device.type == "cuda")

    def _failure(self, name: str, error: Exception) -> SurgeryError:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        advice = (
            "Tensors that it compares with weights follow a cut if there is one for each parameter (in a dict, a list, "
            "an attribute or a buffer); else freeze the layers concerned with FilterPruning's frozen"
        )
        if any(frame.name == "stack_module_state" for frame in traceback.extract_tb(error.__traceback__)):
            advice = (
                "Networks that torch.func.stack_module_state stacks need the same widths: give FilterPruning "
                "allocation={'name': 'uniform', 'equal': True}, or freeze their layers with frozen"
            )
        return SurgeryError(
            f"the {name} of {type(self._module).__name__} fails once layers have lost filters ({reason}): its code "
            f"relies on their present widths, in a number or in tensors of its own. {advice}. Nothing was changed"
        )
