"""Adapt the rest of a network right after a cut: fit weights, and measure batch norm anew."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.surgery import averaged_copies
from infoprune.callbacks.engine.training_data import training_batches
from infoprune.distributed import on_all_ranks
from infoprune.recalibration import recalibrate, tracked_norms
from infoprune.reconstruction import reconstruct
from infoprune.snapshot import snapshot
from infoprune.structure import PruningPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Renewal:
    """Fit the network, and its averaged copies, to training data after a cut.

    Construct it before the cut: where layers are to be fitted, it copies the networks then.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        located: where the network is in the LightningModule.
        options: how many batches each step uses.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, located: LocatedNetwork, options: EngineOptions
    ) -> None:
        self._trainer, self._module, self._located, self._options = trainer, module, located, options
        models = (module, *averaged_copies(trainer)) if options.reconstruction_batches else ()
        self._originals = [(model, snapshot(located.within(model))) for model in models]

    def run(self, plan: PruningPlan) -> None:
        """Fit the layers behind the cut, then measure batch norm.

        Args:
            plan: what was removed, by the network's names.
        """
        for model, original in self._originals if not plan.is_empty else ():
            on_all_ranks(partial(self._reconstruct, model, original, plan))
        fitted = bool(self._originals) and bool(tracked_norms(self._located.within(self._module)))
        if self._options.recalibration_batches or fitted:
            on_all_ranks(self._recalibrate)

    def _reconstruct(self, model: nn.Module, original: nn.Module, plan: PruningPlan) -> None:
        count = self._options.reconstruction_batches
        batches = training_batches(self._trainer, count, "reconstruction_batches")
        data = self._located.received(self._trainer, self._module, batches)
        with torch.compiler.set_stance("force_eager"):
            reconstruct(self._located.within(model), original, data, count, plan=plan)

    def _recalibrate(self) -> None:
        """Measure batch norm at the precision of training."""
        count = self._options.recalibration_batches or self._options.reconstruction_batches
        for model in (self._module, *averaged_copies(self._trainer)):
            data = self._located.received(self._trainer, self._module, training_batches(self._trainer, count))
            with torch.compiler.set_stance("force_eager"), self._trainer.precision_plugin.forward_context():
                recalibrate(self._located.within(model), data, count)
