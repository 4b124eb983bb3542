"""Stand before a LightningModule's own checkpoint hooks: mark what is saved, take the shape of what is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infoprune.callbacks.engine.surgery import averaged_copies
from infoprune.checkpoint import take_shape
from infoprune.marker import mark
from infoprune.structure import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl


def hook_checkpoints(module: pl.LightningModule) -> None:
    """Let a LightningModule mark its checkpoints as pruned and take their shape on loading, until `unhook_checkpoints`.

    These are the only hooks that see every checkpoint: callbacks do not see those of weights alone, and see others only
    after the weights have been loaded. The weights' own record is not enough: WeightAveraging writes them without it.
    """
    for hook in (_MarkOnSave, _ResizeOnLoad):
        if not isinstance(vars(module).get(hook.name), hook):
            vars(module)[hook.name] = hook(module)


def unhook_checkpoints(module: pl.LightningModule) -> None:
    """Undo `hook_checkpoints`."""
    for hook in (_MarkOnSave, _ResizeOnLoad):
        if isinstance(vars(module).get(hook.name), hook):
            own = vars(module).pop(hook.name).own
            if getattr(module, hook.name) != own:  # it was an attribute of the instance before, too
                vars(module)[hook.name] = own


def mark_checkpoint(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Add the entry that says that a module's weights are pruned to a Trainer's checkpoint."""
    if isinstance(checkpoint.get("state_dict"), dict):
        mark(checkpoint["state_dict"], plan_of(module))


class _Hook:
    """Stands before a hook of a LightningModule that takes a checkpoint."""

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
        take_shape([self.module, *copies], checkpoint)
        self.own(checkpoint)
