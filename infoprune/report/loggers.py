"""Send a run's scalars to all loggers, and panels, tables and artifacts to those that hold them.

The W&B client is imported only where a WandbLogger is in use: it takes as long to import as the rest of the package.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infoprune.report import tensorboard_panels
from infoprune.report.record import EventRecord, RunRecord
from infoprune.report.scalars import event_scalars, summary_values

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

ARTIFACTS = ("report.html", "record.json", "plan.json", "pruned.pt", "config.yaml")
"""Files of the run folder that MLflow keeps with the run."""


class RunLog:
    """Send a pruning run to any Lightning loggers.

    A logger that fails is warned about once and left alone from then on; training is worth more than its log.
    To be used on the process with global rank zero only.

    Args:
        loggers: the Trainer's loggers.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = list(loggers)
        self._events: list[EventRecord] = []

    def start(self, options: Mapping[str, Any]) -> None:
        """Send the pruning options as hyperparameters.

        Args:
            options: the pruning options, as plain data.
        """
        self._each(lambda logger: logger.log_hyperparams({"pruning": dict(options)}))

    def configuration(self, config: Mapping[str, Any]) -> None:
        """Send the resolved configuration of a run, so that runs can be grouped by rate, batch size, seed or model.

        Args:
            config: the configuration, as plain data.
        """
        self._each(lambda logger: logger.log_hyperparams(dict(config)))

    def event(self, event: EventRecord, more: Mapping[str, float] | None = None) -> None:
        """Send the scalars of an event (and ``more``), and its tables and histograms to loggers that hold them.

        Args:
            event: the event.
            more: further scalars by name.
        """
        self._events.append(event)
        scalars = {**event_scalars(event), **(more or {})}

        def send(logger: Any) -> None:
            if _is_wandb(logger):
                from infoprune.report import wandb_panels

                if event is self._events[0]:
                    wandb_panels.define(logger.experiment, scalars)
                panels = wandb_panels.event_panels(event, self._events)
                logger.experiment.log({**scalars, **panels, "trainer/global_step": event.global_step})
                return
            logger.log_metrics(scalars, step=event.global_step)
            if _is_tensorboard(logger):
                tensorboard_panels.add_event(logger.experiment, event)

        self._each(send)

    def finish(self, record: RunRecord, folder: Path, step: int) -> None:
        """Send the values that runs are compared by, and to W&B and MLflow the run folder's files as artifacts.

        Args:
            record: What the run did.
            folder: Where its files are.
            step: The global step that the values are logged at.
        """

        def send(logger: Any) -> None:
            if _is_wandb(logger):
                from infoprune.report import wandb_panels

                logger.experiment.log({"prune/events": wandb_panels.events_table(record.events)})
                logger.experiment.summary.update(summary_values(record))
                logger.experiment.log_artifact(wandb_panels.artifact(logger.experiment.id, record, folder))
                return
            logger.log_metrics(summary_values(record), step=step)
            if _is_tensorboard(logger):
                tensorboard_panels.add_run(logger.experiment, record, step)
            logger.save()
            if _is_mlflow(logger):
                for name in ARTIFACTS:
                    if (folder / name).is_file():
                        logger.experiment.log_artifact(logger.run_id, str(folder / name), "pruning")

        self._each(send)

    def _each(self, send: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                send(logger)
            except Exception as error:
                # Whatever a logger's client raises (network, disk, quota) must not cost the user the training run.
                self._loggers.remove(logger)
                warnings.warn(
                    f"{type(logger).__name__} failed with {type(error).__name__}: {error}; the run goes on and this "
                    "logger gets no more pruning metrics",
                    stacklevel=3,
                )


def _is_wandb(logger: object) -> bool:
    return _is_a(logger, "WandbLogger")


def _is_mlflow(logger: object) -> bool:
    return _is_a(logger, "MLFlowLogger")


def _is_tensorboard(logger: object) -> bool:
    return _is_a(logger, "TensorBoardLogger")


def _is_a(logger: object, name: str) -> bool:
    """Return whether a logger is Lightning's of that name, from ``lightning`` or from ``pytorch_lightning``."""
    return any(cls.__name__ == name for cls in type(logger).__mro__)
