"""Check and adjust the parts of a Trainer that pruning affects: strategy, optimizers, other callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from infoprune.checkpoint import is_attached
from infoprune.errors import ConfigurationError
from infoprune.structure.surgery.held import held_optimizers, with_wrapped
from infoprune.structure.surgery.optimizer_state import check_optimizer_ahead

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.filter_pruning import FilterPruning

SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def check_strategy(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse strategies under which a model cannot change in the middle of a fit.

    Args:
        trainer: the Trainer.
        module: its LightningModule.

    Raises:
        ConfigurationError: names the strategy and what to do instead.
    """
    strategy = trainer.strategy
    kinds = {cls.__name__ for cls in type(strategy).__mro__}
    if kinds & set(SHARDED):
        raise ConfigurationError(
            f"{type(strategy).__name__} shards the parameters, and a sharded model cannot be shrunk in the middle of a "
            "fit. Prune before it is wrapped: in the LightningModule's configure_model, build the network and call "
            "infoprune.prune(net, ...), infoprune.shrink(net, plan) or infoprune.load(path, net), and leave "
            "FilterPruning out; or use strategy='ddp'"
        )
    launcher = type(strategy.launcher).__name__ if strategy.launcher is not None else ""
    if launcher == "_MultiProcessingLauncher" and not is_attached(module):
        raise ConfigurationError(
            "with ddp_spawn, ddp_fork and ddp_notebook the model is pruned in other processes, and the one that "
            "started them could not take its weights back. Use strategy='ddp', or call infoprune.attach(model) before "
            "trainer.fit (the model comes back pruned; FilterPruning.history does not)"
        )
    if getattr(strategy, "_ddp_comm_state", None) is not None:
        raise ConfigurationError(
            f"the DDP communication hook keeps a {type(strategy._ddp_comm_state).__name__} with buffers of the old "  # type: ignore[attr-defined]
            "shapes; leave ddp_comm_state out while pruning"
        )


def check_callbacks(trainer: pl.Trainer, pruning: FilterPruning) -> None:
    """Refuse callbacks that pruning would break, and a second `FilterPruning` for the same part of the model.

    Args:
        trainer: the Trainer.
        pruning: the callback that asks; other `FilterPruning` callbacks need a part of their own.

    Raises:
        ConfigurationError: names the callback and what to do instead.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        kinds = {cls.__name__ for cls in type(callback).__mro__}
        if "ModelPruning" in kinds:
            raise ConfigurationError(
                "ModelPruning masks weights by a parametrization, and a parametrized layer cannot be shrunk: leave one "
                "of ModelPruning and FilterPruning out"
            )
    part = pruning.module
    for other in (found.module for found in _callbacks_of_kind(trainer, "FilterPruning") if found is not pruning):
        if part is None or other is None or f"{part}.".startswith(f"{other}.") or f"{other}.".startswith(f"{part}."):
            raise ConfigurationError(
                f"two FilterPruning callbacks prune the same part of the model ({part!r} and {other!r}): give each its "
                "own part with module=..., or leave one out"
            )


def find_pruning(trainer: pl.Trainer, module: str | None, who: str) -> FilterPruning:
    """Return the Trainer's `FilterPruning`; if it has several, the one for a given part of the model.

    Args:
        trainer: the Trainer.
        module: the ``module`` option of the wanted callback; None if there is only one.
        who: name of the callback that asks, for messages.

    Raises:
        ConfigurationError: there is none, or not clearly one.
    """
    found: list[FilterPruning] = _callbacks_of_kind(trainer, "FilterPruning")
    if not found:
        raise ConfigurationError(
            f"{who} works with FilterPruning, and the Trainer has none among its callbacks: add one"
        )
    if len(found) > 1 or module is not None:
        chosen = [callback for callback in found if callback.module == module]
        if len(chosen) != 1:
            parts = ", ".join(repr(callback.module) for callback in found)
            raise ConfigurationError(
                f"{who}: module={module!r} does not say which FilterPruning is meant; there is {parts}"
            )
        return chosen[0]
    return found[0]


def check_started(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse optimizers and wrappers that pruning would break; they exist only once the fit has started.

    Args:
        trainer: the Trainer.
        module: its LightningModule.

    Raises:
        SurgeryError: an optimizer's state cannot be cut.
        ConfigurationError: the strategy wraps the model in something unknown.
    """
    own = {id(parameter) for parameter in module.parameters()}
    held = held_optimizers(module)
    for optimizer in with_wrapped([*trainer.optimizers, *held]):
        check_optimizer_ahead(optimizer)
        foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
        if foreign and optimizer not in held:
            raise ConfigurationError(
                f"{type(optimizer).__name__} holds {foreign} parameters that are not among those of "
                f"{type(module).__name__}, which would never be trained or cut. Most likely it was made before the "
                "model took its present shape: make it in configure_optimizers, from self.parameters()"
            )
    model: Any = trainer.strategy.model
    if model is not module and not isinstance(model, DistributedDataParallel):
        raise ConfigurationError(
            f"{type(trainer.strategy).__name__} wraps the model in a {type(model).__name__}, which cannot follow when "
            "it shrinks: use a single device or strategy='ddp'"
        )


def reset_best(trainer: pl.Trainer) -> None:
    """Reset the best score of every ModelCheckpoint; files on disk stay.

    Args:
        trainer: the Trainer.
    """
    for checkpoint in _callbacks_of_kind(trainer, "ModelCheckpoint"):
        if checkpoint.monitor is None:
            continue  # it keeps the latest, in place of the one before
        checkpoint.best_k_models = {}
        checkpoint.kth_best_model_path = ""
        checkpoint.best_model_path = ""
        checkpoint.best_model_score = None
        checkpoint.current_score = None
        checkpoint.kth_value = torch.tensor(float("inf") if checkpoint.mode == "min" else -float("inf"))


def reset_early_stopping(trainer: pl.Trainer) -> None:
    """Reset the wait and the best score of every EarlyStopping.

    Args:
        trainer: the Trainer.
    """
    for stopping in _callbacks_of_kind(trainer, "EarlyStopping"):
        stopping.wait_count = 0
        stopping.best_score = torch.tensor(float("inf") if stopping.mode == "min" else -float("inf"))


def _callbacks_of_kind(trainer: pl.Trainer, kind: str) -> list[Any]:
    """Return the Trainer's callbacks of a class, found by name because Lightning has two package names."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if kind in {cls.__name__ for cls in type(callback).__mro__}]
