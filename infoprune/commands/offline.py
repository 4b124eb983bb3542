"""Run W&B loggers offline where there is no network or login, and say where the run is kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from infoprune.errors import InfopruneError


def reach_wandb(trainer: L.Trainer) -> None:
    """Start the runs of the Trainer's WandbLoggers; one that W&B does not take goes on offline, with one warning.

    Processes that are spawned or forked start their own runs, so there nothing is done.

    Args:
        trainer: the Trainer, before its fit.
    """
    if not trainer.is_global_zero or isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        return
    for logger in _wandb_loggers(trainer):
        from wandb.errors import Error

        try:
            _ = logger.experiment
        except Error as error:
            logger._wandb_init["mode"] = "offline"  # what its constructor hands to wandb.init
            where = _kept_offline(logger, _first_line(error))
            warnings.warn(
                f"W&B does not take this run ({_first_line(error)}): it is kept offline in {where}", stacklevel=2
            )


def _kept_offline(logger: WandbLogger, why: str) -> Path:
    """Return the folder of the run; clients before 0.28 start none after one that the network failed."""
    from wandb import __version__
    from wandb.errors import Error

    try:
        return Path(logger.experiment.dir).parent
    except Error as error:
        raise InfopruneError(
            f"W&B does not take this run ({why}), and wandb {__version__} cannot keep it offline after that: "
            "set WANDB_MODE=offline, or pip install 'wandb>=0.28'"
        ) from error


def offline_runs(trainer: L.Trainer) -> list[Path]:
    """Return the folders of the Trainer's W&B runs that were not sent yet.

    Args:
        trainer: the Trainer, after its fit.
    """
    runs = [logger.experiment for logger in _wandb_loggers(trainer)]
    return [Path(run.dir).parent for run in runs if getattr(run, "offline", False)]


def _wandb_loggers(trainer: L.Trainer) -> Iterator[WandbLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")
