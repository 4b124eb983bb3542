"""Wrap the checkpoint hooks of a LightningModule: mark saved checkpoints, take the shapes of loaded ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infoprune.callbacks.engine.surgery import averaged_copies
from infoprune.checkpoint import take_shape_around
from infoprune.marker import mark
from infoprune.structure import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl


def hook_checkpoints(module: pl.LightningModule) -> None:
    """Wrap a LightningModule's checkpoint hooks, until `unhook_checkpoints`.

    Checkpoints are then marked as pruned when they are saved, and the module takes their shape when they are loaded.
    Only these hooks see every checkpoint: callbacks do not see checkpoints of weights alone, and see others only after
    the weights have been loaded. The record within the weights is not enough: WeightAveraging writes them without it.

    Args:
        module: the LightningModule; one that is hooked already stays as it is.
    """
    for hook in (_MarkOnSave, _ResizeOnLoad):
        if not isinstance(vars(module).get(hook.name), hook):
            vars(module)[hook.name] = hook(module)


def unhook_checkpoints(module: pl.LightningModule) -> None:
    """Restore the hooks that `hook_checkpoints` wrapped.

    Args:
        module: the LightningModule; one that is not hooked stays as it is.
    """
    for hook in (_MarkOnSave, _ResizeOnLoad):
        if isinstance(vars(module).get(hook.name), hook):
            own = vars(module).pop(hook.name).own
            if getattr(module, hook.name) != own:  # it was an attribute of the instance before, too
                vars(module)[hook.name] = own


def mark_checkpoint(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Mark the weights in a Trainer's checkpoint as pruned.

    Args:
        module: the LightningModule whose weights they are.
        checkpoint: what the Trainer is about to save; changed in place.
    """
    if isinstance(checkpoint.get("state_dict"), dict):
        mark(checkpoint["state_dict"], plan_of(module))


class _Hook:
    """Wrap a hook of a LightningModule that takes a checkpoint."""

    name: str

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module
        self.own: Callable[[dict[str, Any]], Any] = getattr(module, self.name)


class _MarkOnSave(_Hook):
    name = "on_save_checkpoint"

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self.own(checkpoint)
        mark_checkpoint(self.module, checkpoint)


class _ResizeOnLoad(_Hook):
    name = "on_load_checkpoint"

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        trainer = self.module._trainer
        copies = averaged_copies(trainer) if trainer is not None else []
        take_shape_around([self.module, *copies], checkpoint, lambda: self.own(checkpoint))
