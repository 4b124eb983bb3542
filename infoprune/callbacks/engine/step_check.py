"""`StepCheck`: run a training step before and after a cut."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.seed import isolate_rng

from infoprune.callbacks.engine.met_weights import MetWeights
from infoprune.callbacks.engine.training_step import watch_training_step
from infoprune.errors import SurgeryError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


class StepCheck:
    """Refuse a cut after which the training step fails; without side effects, and with the same random numbers.

    A step that fails before the cut too, because it relies on hooks that have not run, say, is not run again.

    Args:
        trainer: the Trainer.
        module: its LightningModule, before the cut.
        batch: a batch on the training device; None if there is none: then nothing is checked.

    Attributes:
        met: the tensors that the step compares with weights.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> None:
        self._trainer = trainer
        self._module = module
        self._batch = batch
        self.met = MetWeights()
        if batch is not None:
            try:
                self.met = self._run()
            except Exception as error:  # of the user's code
                log.debug("The training step could not be run: %s: %s", type(error).__name__, error)
                self._batch = None

    def again(self) -> None:
        """Run the step on the cut model.

        Raises:
            SurgeryError: the step fails.
        """
        if self._batch is None:
            return
        try:
            self._run()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise SurgeryError(
                f"the training step of {type(self._module).__name__} fails once layers have lost filters ({reason}): "
                "its code relies on their present widths, in a number or in tensors of its own. Tensors that it "
                "compares with weights follow a cut if there is one for each parameter (in a dict, a list, an "
                "attribute or a buffer); else freeze the layers concerned with FilterPruning's frozen. Nothing was "
                "changed"
            ) from error

    def _run(self) -> MetWeights:
        with isolate_rng(self._trainer.strategy.root_device.type == "cuda"):
            return watch_training_step(self._trainer, self._module, self._batch).met
