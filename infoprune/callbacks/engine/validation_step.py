"""Run a LightningModule's validation step once, without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from infoprune.callbacks.engine.idle_step import silenced
from infoprune.callbacks.engine.undisturbed import undisturbed

if TYPE_CHECKING:
    import lightning.pytorch as pl


def run_validation_step(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, *loader: int) -> None:
    """Run the validation step on a batch, in eval mode, and restore all that it has changed.

    Args:
        trainer: the Trainer of the fit.
        module: its LightningModule.
        batch: a batch on the training device.
        loader: number of the loader that it is from, if there are several.

    Raises:
        Exception: whatever the validation step raises.
    """
    own = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), batch)  # a step may change its batch
    with undisturbed(module), validating(trainer), silenced(module), torch.no_grad():
        module.eval()
        with trainer.precision_plugin.val_step_context():
            module.validation_step(own, 0, *loader)


@contextmanager
def validating(trainer: pl.Trainer) -> Iterator[None]:
    """Let the Trainer say that it validates, for code that asks it.

    Args:
        trainer: the Trainer.
    """
    before = trainer.state.stage
    trainer.validating = True
    try:
        yield
    finally:
        trainer.state.stage = before
