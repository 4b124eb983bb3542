"""Giving a LightningModule the shape of a checkpoint before its weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infoprune.callbacks.surgery import averaged_copies
from infoprune.checkpoint import take_shape

if TYPE_CHECKING:
    import lightning.pytorch as pl

HOOK = "on_load_checkpoint"


class ShapeFirst:
    """Stands before a LightningModule's own ``on_load_checkpoint`` while a Trainer has it.

    That is the only hook that sees a whole checkpoint before the weights are loaded; callbacks see it afterwards. The
    weights' own record is not enough: WeightAveraging writes them without it.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module = module
        self._own = getattr(module, HOOK)

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's shape, then let the LightningModule see the checkpoint."""
        trainer = self._module._trainer
        copies = averaged_copies(trainer) if trainer is not None else []
        take_shape([self._module, *copies], checkpoint)
        self._own(checkpoint)


def install(module: pl.LightningModule) -> None:
    """Put the hook in front, once."""
    if not isinstance(module.__dict__.get(HOOK), ShapeFirst):
        module.__dict__[HOOK] = ShapeFirst(module)


def uninstall(module: pl.LightningModule) -> None:
    """Leave the LightningModule as it was."""
    if isinstance(module.__dict__.get(HOOK), ShapeFirst):
        own = module.__dict__.pop(HOOK)._own
        if getattr(module, HOOK) != own:  # it was an attribute of the instance before, too
            module.__dict__[HOOK] = own
