"""`EventLog`: the events of a fit, recorded and sent to the Trainer's loggers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from infoprune.callbacks.measure import ValidationMetrics, validate_now
from infoprune.cost import Cost
from infoprune.decide import Decision, share_of_time
from infoprune.report.collect import event_record
from infoprune.report.loggers import RunLog
from infoprune.report.record import EventRecord, LayerRow
from infoprune.report.text import event_line
from infoprune.structure import Structure

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.engine import PruningEngine
    from infoprune.schedule import Schedule


class EventLog:
    """Record the events of a fit and the metrics of its validations.

    Attributes:
        events: for every event so far, the removed channels and the validation metrics before and after it.
    """

    def __init__(self) -> None:
        self.events: list[EventRecord] = []
        self._validation = ValidationMetrics()
        self._run: RunLog | None = None

    @property
    def last_epoch(self) -> int:
        """Return the epoch of the last event, -1 before the first."""
        return self.events[-1].epoch if self.events else -1

    def start(self, trainer: pl.Trainer, options: Mapping[str, Any]) -> None:
        """Send the options to the loggers; only the process with global rank zero logs.

        Args:
            trainer: the Trainer, with its loggers.
            options: the options of `FilterPruning`, as plain data.
        """
        if trainer.is_global_zero:
            self._run = RunLog(trainer.loggers)
            self._run.start(options)

    def add(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        structure: Structure,
        decision: Decision,
        engine: PruningEngine,
        *,
        validate: bool,
    ) -> None:
        """Record an event that has just happened, and log it.

        Args:
            trainer: the Trainer.
            module: its LightningModule, already pruned.
            structure: the network before the event.
            decision: the plan of the event, with its scores.
            engine: the engine that decided, with the options and the unpruned model's cost.
            validate: run the validation now, to measure the loss by the cut alone.
        """
        unpruned, options = engine.unpruned, engine.options
        assert unpruned is not None
        latency = None if options.target.latency is None else engine.latency_ratio
        event = event_record(
            len(self.events),
            trainer.current_epoch,
            trainer.global_step,
            options.described()["criterion"],
            structure,
            decision.plan,
            decision.scores,
            self._validation.metrics,
            decision.curves,
        )
        self.events.append(event)
        if validate:
            event.metrics_cut = validate_now(trainer)
        time = "" if latency is None else f", {share_of_time(latency, decision.latency_error)}"
        rank_zero_info(event_line(event, unpruned.cost, unpruned.frozen) + time)
        macs, params = Cost(event.macs, event.params).ratio(unpruned.cost)
        ratios = {"prune/macs_ratio": macs, "prune/params_ratio": params}
        ratios |= {f"prune/after_cut/{k}": value for k, value in event.metrics_cut.items() if value is not None}
        if latency is not None:
            ratios["prune/latency_ratio"] = latency
        if self._run is not None:
            self._run.event(event, ratios)
        totals = {
            "prune/event": event.index + 1.0,
            "prune/macs": float(event.macs),
            "prune/params": float(event.params),
        }
        # For filenames and monitors; the loggers have it already, with the step at which it happened.
        module.log_dict({**totals, **ratios}, logger=False, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def warn_of_missed(self, schedule: Schedule, epoch: int) -> None:
        """Warn if training ended before the last events of its schedule.

        Args:
            schedule: the schedule.
            epoch: the epoch in which training ended.
        """
        missed = [due for due in schedule.epochs if due > self.last_epoch]
        if missed:
            warnings.warn(
                f"training ended in epoch {epoch}, before the pruning events of epochs {missed}: the model was pruned "
                f"{len(self.events)} of {len(schedule.events)} times",
                stacklevel=3,
            )

    def validation_starts(self, trainer: pl.Trainer) -> None:
        """Save the metrics before a validation of the fit.

        Args:
            trainer: The Trainer.
        """
        self._validation.start(trainer)

    def validation_ends(self, trainer: pl.Trainer) -> None:
        """Save the results of the validation, also as the metrics after the last event.

        Args:
            trainer: The Trainer.
        """
        self._validation.end(trainer)
        if self.events:
            self.events[-1].metrics_after = dict(self._validation.metrics)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the loggers, which belong to the running process."""
        return {**vars(self), "_run": None}

    def state_dict(self) -> dict[str, Any]:
        """Return the events and the last metrics as plain data, for a checkpoint."""
        return {
            "history": [dataclasses.asdict(event) for event in self.events],
            "validated": dict(self._validation.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: As read from a checkpoint.
        """
        self.events = [
            EventRecord(**{**event, "layers": [LayerRow(**row) for row in event["layers"]]})
            for event in state["history"]
        ]
        self._validation.metrics = dict(state["validated"])
