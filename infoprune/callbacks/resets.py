"""Letting other callbacks forget what they know of the larger model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import lightning.pytorch as pl


def reset_best(trainer: pl.Trainer) -> None:
    """Let every ModelCheckpoint look for the best anew; the files that it has written stay."""
    for checkpoint in _all(trainer, "ModelCheckpoint"):
        checkpoint.best_k_models = {}
        checkpoint.kth_best_model_path = ""
        checkpoint.best_model_path = ""
        checkpoint.best_model_score = None
        checkpoint.current_score = None
        checkpoint.kth_value = torch.tensor(float("inf") if checkpoint.mode == "min" else -float("inf"))


def reset_early_stopping(trainer: pl.Trainer) -> None:
    """Let every EarlyStopping start over."""
    for stopping in _all(trainer, "EarlyStopping"):
        stopping.wait_count = 0
        stopping.best_score = torch.tensor(float("inf") if stopping.mode == "min" else -float("inf"))


def _all(trainer: pl.Trainer, kind: str) -> list[Any]:
    """The Trainer's callbacks of a kind; by name, since the package has two names."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if kind in {cls.__name__ for cls in type(callback).__mro__}]
