"""Adapt the rest of a network right after a cut: fit weights, and measure batch norm anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from infoprune.callbacks.engine.decider import Decider
from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.callbacks.engine.surgery import averaged_copies
from infoprune.callbacks.engine.training_data import training_batches
from infoprune.distributed import failed_only_by, on_all_ranks
from infoprune.errors import DataError
from infoprune.recalibration import recalibrate, tracked_norms
from infoprune.reconstruction import few_examples, fit_readers
from infoprune.snapshot import snapshot
from infoprune.structure import PruningPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Renewal:
    """Fit the network, and its averaged copies, to training data after a cut.

    Construct it before the cut: where layers may be fitted, it copies the networks then.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        located: where the network is in the LightningModule.
        options: how many batches each step uses.
        decider: knows the images that decisions look at.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        located: LocatedNetwork,
        options: EngineOptions,
        decider: Decider,
    ) -> None:
        self._trainer, self._module, self._located, self._options = trainer, module, located, options
        self._decider = decider
        self._automatic = options.reconstruction_batches == "auto"
        wanted = options.looks_at_data if self._automatic else options.reconstruction_batches
        models = (module, *averaged_copies(trainer)) if wanted else ()
        self._originals = [(model, snapshot(located.within(model))) for model in models]

    def run(self, plan: PruningPlan) -> None:
        """Fit the layers behind the cut, then measure batch norm.

        Args:
            plan: what was removed, by the network's names.
        """
        batches = (self._attempted(self._shown) if self._originals and not plan.is_empty else None) or []
        for model, original in self._originals if batches else ():
            with torch.compiler.set_stance("force_eager"):
                self._attempted(partial(self._fit, self._network(model), original, plan, batches))
        if self._options.recalibration_batches:
            on_all_ranks(self._recalibrate)

    def _shown(self) -> list[Any]:
        """Return the batches that layers are fitted on; none where decisions look at none."""
        count = self._options.reconstruction_batches
        if count != "auto":
            return list(islice(self._received(count, "reconstruction_batches"), count))
        images = self._decider.shown(self._trainer, self._module)
        return [] if images is None else few_examples(images, "FilterPruning")

    def _received(self, count: Any, option: str) -> Iterable[Any]:
        """Return training batches as the network receives them."""
        batches = training_batches(self._trainer, count, option)
        return self._located.received(self._trainer, self._module, batches)

    def _attempted(self, work: Callable[[], Result]) -> Result | None:
        """Return what work on all processes returns; with "auto", None where the data do not allow it."""
        try:
            return on_all_ranks(work)
        except Exception as error:
            if not self._automatic or not failed_only_by(error, DataError):
                raise
            log.warning("the layers behind the cut are not fitted to their former outputs: %s", error)
            return None

    def _fit(self, network: nn.Module, original: nn.Module, plan: PruningPlan, batches: Sequence[Any]) -> None:
        """Fit a copy of a network and measure its batch norm, and take over what has changed."""
        trial = snapshot(network)
        leave = _frozen(self._network(self._module)) if self._automatic else set()
        norms = [name for name in tracked_norms(trial) if name not in leave]
        with OutsideState(self._module).restored():
            changed = fit_readers(trial, original, batches, None, plan, leave=leave)
            if norms and not self._options.recalibration_batches:
                with self._trainer.precision_plugin.forward_context():
                    recalibrate(trial, batches, leave=leave)
        log.info("%d layers and batch norms behind the cut are fitted to their former outputs", len(changed))
        for name in changed:
            network.get_submodule(name).load_state_dict(trial.get_submodule(name).state_dict())
        for name in norms:  # not their weights, which a training step that is run may have changed
            for buffer, measured in zip(
                network.get_submodule(name).buffers(False), trial.get_submodule(name).buffers(False), strict=True
            ):
                buffer.copy_(measured)

    def _recalibrate(self) -> None:
        """Measure batch norm at the precision of training."""
        count = self._options.recalibration_batches
        for model in (self._module, *averaged_copies(self._trainer)):
            batches = self._received(count, "recalibration_batches")
            with torch.compiler.set_stance("force_eager"), self._trainer.precision_plugin.forward_context():
                recalibrate(self._network(model), batches, count)

    def _network(self, model: nn.Module) -> nn.Module:
        return self._located.within(model)


def _frozen(network: nn.Module) -> set[str]:
    """Return the names of the modules with a parameter that is not trained."""
    return {
        name
        for name, module in network.named_modules()
        if not all(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }
