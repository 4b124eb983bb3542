"""Choose the folder of a run, shared by its loggers, checkpoints and reports."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning as L

from infoprune.errors import ConfigurationError

FOLDER = "pruning_run"
"""Name of the run folder below ``default_root_dir`` where no logger names one."""


def run_folder(trainer: L.Trainer) -> Path:
    """Return the folder of a run, the same on every process: that of the first logger, as ModelCheckpoint chooses it.

    A collective call: every process has to make it.

    Args:
        trainer: the Trainer.
    """
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    else:
        folder = Path(trainer.default_root_dir) / FOLDER
    return Path(trainer.strategy.broadcast(str(folder)))


def check_writable(folder: Path) -> None:
    """Make a folder and write into it, so that a run does not fail after hours of training.

    Args:
        folder: the folder.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(
            f"the run folder {folder} cannot be written ({error.strerror}): choose another with the logger's save_dir, "
            "or trainer.default_root_dir where there is no logger"
        ) from error
