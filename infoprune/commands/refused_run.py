"""Leave no folder behind where a run is refused before its first training step."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from infoprune.errors import ConfigurationError, InfopruneError
from infoprune.report.run_folder import FOLDER


@contextlib.contextmanager
def removed_if_refused(trainer: L.Trainer) -> Iterator[None]:
    """Remove the folders that a run has made, if it is refused before it has trained.

    Args:
        trainer: The Trainer that is about to run. Folders that exist by now are kept.
    """
    made = [path for folder in _folders(trainer) for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (InfopruneError, MisconfigurationException):
        if trainer.is_global_zero and trainer.global_step == 0:
            for folder in _folders(trainer):
                if folder in made:
                    shutil.rmtree(folder, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):  # it holds something else, or is gone
                    path.rmdir()
        raise


@contextlib.contextmanager
def lightning_refusals() -> Iterator[None]:
    """Turn a ValueError that Lightning's own code raises about its options into a ConfigurationError of one line."""
    try:
        yield
    except InfopruneError:
        raise
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith("lightning."):
            raise  # of the user's code, whose place in a traceback matters
        raise ConfigurationError(" ".join(str(error).split())) from error


def _folders(trainer: L.Trainer) -> list[Path]:
    """Return the folders that the run writes into: of loggers that write files, and where there is no logger."""
    found = [Path(folder) for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None))]
    return found or [Path(trainer.default_root_dir) / FOLDER]
