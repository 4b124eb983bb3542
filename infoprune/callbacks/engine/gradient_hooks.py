"""Run what a project does with gradients between the training step and the optimizer, without side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from infoprune.callbacks.engine.idle_step import silenced
from infoprune.callbacks.engine.met_weights import WeightMeetings
from infoprune.callbacks.engine.undisturbed import undisturbed
from infoprune.structure.module_state import is_of_a_logger
from infoprune.structure.tensors import OwnedTensor, owned_tensors

if TYPE_CHECKING:
    import lightning.pytorch as pl


def run_gradient_hooks(trainer: pl.Trainer, module: pl.LightningModule) -> dict[int, str]:
    """Call the hooks of parameters, ``on_after_backward`` and ``on_before_optimizer_step`` on gradients of zero.

    Args:
        trainer: the Trainer.
        module: its LightningModule, which is afterwards what it was.

    Returns:
        Address of a tensor's memory -> name of the parameter whose gradient it meets, element by element: of masks.

    Raises:
        Exception: whatever a hook raises.
    """
    owned = {name: entry for name, entry in owned_tensors(module).items() if entry.tensor.requires_grad}
    if not any(map(_hooks, owned.values())) and not any(is_overridden(name, module) for name in _BEFORE_THE_STEP):
        return {}
    with undisturbed(module) as clones, silenced(module), torch.no_grad():
        gradients: dict[str, Tensor] = {}
        for name in owned:
            gradients[name] = clones[name].grad = torch.zeros_like(clones[name])
        with WeightMeetings(gradients.items()) as meetings:
            for name, entry in owned.items():
                for hook in _hooks(entry):
                    result = hook(gradients[name])
                    if isinstance(result, Tensor) and result.shape != gradients[name].shape:
                        shapes = f"{tuple(gradients[name].shape)} into {tuple(result.shape)}"
                        raise ValueError(f"a hook of {name} makes a gradient of shape {shapes}")
            if is_overridden(_BEFORE_THE_STEP[0], module):
                module.on_after_backward()
            if is_overridden(_BEFORE_THE_STEP[1], module) and module.automatic_optimization:
                optimizers = module.optimizers()
                for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                    module.on_before_optimizer_step(optimizer)  # type: ignore[arg-type]
    return meetings.found


_BEFORE_THE_STEP = ("on_after_backward", "on_before_optimizer_step")


def _hooks(entry: OwnedTensor) -> list[Callable[[Tensor], Any]]:
    hooks = getattr(entry.tensor, "_backward_hooks", None) or {}
    return [hook for hook in hooks.values() if not is_of_a_logger(hook)]
