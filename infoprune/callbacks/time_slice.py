"""`TimeSlice`: split a run into portions of a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from infoprune.callbacks._compat import DualNamespaceCallback
from infoprune.registry import check_number
from infoprune.report.run_folder import run_folder

CHECKPOINT = "checkpoints/slice.ckpt"
"""Where a slice leaves off, below the run folder."""


class SliceOver(Exception):
    """Raised when the minutes of a `TimeSlice` have passed.

    Attributes:
        checkpoint: the file that the next slice resumes from.
    """

    def __init__(self, minutes: float, checkpoint: Path) -> None:
        super().__init__(f"stopped after {minutes:g} minutes; --ckpt_path {checkpoint} goes on from here")
        self.checkpoint = checkpoint


class TimeSlice(DualNamespaceCallback):
    """Stop a fit after some minutes, with a checkpoint from which the next slice resumes to the same result.

    For machines that are available for a limited time. ``Trainer(max_time=...)`` ends a run for good, with its last
    validation and its report; this callback saves ``checkpoints/slice.ckpt`` in the run folder and raises `SliceOver`,
    which ``infoprune fit`` turns into a line of text and the exit code 0.

    If the training loader saves its position (``state_dict``, as those of `infoprune.data.CIFAR10DataModule` do), the
    fit stops after any optimizer step but the last of an epoch; else at the end of an epoch, since the loader would
    repeat half an epoch in another order.

    Args:
        minutes: time from the construction of the callback; at least one step is taken.

    Raises:
        ConfigurationError: ``minutes`` is not above 0.
        SliceOver: the minutes have passed; on every process.

    Example:
        >>> TimeSlice(minutes=30).minutes
        30
    """

    def __init__(self, minutes: float) -> None:
        check_number("TimeSlice", "minutes", minutes, 1e-9)
        self.minutes = minutes
        self._end = time.monotonic() + 60 * minutes

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and not trainer.is_last_batch and hasattr(trainer.train_dataloader, "state_dict"):
            self._stop_if_over(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop_if_over(trainer)

    def _stop_if_over(self, trainer: pl.Trainer) -> None:
        # all processes stop at the same step, or the others would wait for ever
        if trainer.strategy.reduce_boolean_decision(time.monotonic() >= self._end, all=False):
            checkpoint = run_folder(trainer) / CHECKPOINT
            trainer.save_checkpoint(checkpoint)
            raise SliceOver(self.minutes, checkpoint)
