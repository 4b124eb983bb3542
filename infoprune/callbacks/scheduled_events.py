"""`ScheduledEvents`: a callback whose events happen at the start of scheduled training epochs."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from infoprune.callbacks.event_log import EventLog
from infoprune.callbacks.shape_guard import ShapeGuard, ShapeKeepingCallback
from infoprune.distributed import on_all_ranks

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.report.record import EventRecord
    from infoprune.schedule import Schedule


class ScheduledEvents(ShapeKeepingCallback, ABC):
    """Base of `FilterPruning`: decides when events happen, and records them over a run and its checkpoints.

    A subclass implements `run_event`.

    Args:
        schedule: the epochs of the events, and the fraction of the whole cut that each reaches.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self._log = EventLog()
        self._run: weakref.ref[pl.Trainer] | None = None

    @property
    def history(self) -> list[EventRecord]:
        """The events so far, the first one first."""
        return self._log.events

    def is_due(self, epoch: int) -> bool:
        """Return whether an event is to happen at the start of an epoch.

        Args:
            epoch: number of the epoch, from 0.
        """
        return self.schedule.fraction_due(epoch, after=self._log.last_epoch) is not None

    @abstractmethod
    def run_event(self, trainer: pl.Trainer, pl_module: pl.LightningModule, fraction: float) -> None:
        """Prune the model, and record the event.

        Args:
            trainer: the Trainer.
            pl_module: its LightningModule.
            fraction: share of the whole cut to reach, in (0, 1].
        """

    def start_over(self) -> None:
        """Reset the state for a new run. A resumed run restores it from the checkpoint."""
        self._log, self._guard = EventLog(), ShapeGuard()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.schedule.check(trainer.max_epochs)
            if self._run is None or self._run() is not trainer:
                self._run = weakref.ref(trainer)
                self.start_over()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run_if_due(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            # A fit that resumes behind the last batch of an epoch enters the next one without any epoch start.
            self._run_if_due(trainer, pl_module)

    def _run_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fraction = self.schedule.fraction_due(trainer.current_epoch, after=self._log.last_epoch)
        if trainer.fast_dev_run and not self.history:  # type: ignore[attr-defined]
            fraction = 1.0
        if fraction is not None:
            on_all_ranks(lambda: self.run_event(trainer, pl_module, fraction))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._log.warn_of_missed(self.schedule, trainer.current_epoch)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._log.validation_starts(trainer)
        super().on_validation_start(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log.validation_ends(trainer)

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Leave out the Trainer, which belongs to the running process."""
        return {**super().__getstate__(), "_run": None}
