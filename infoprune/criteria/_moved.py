"""Modules that have moved, importable under their old names for one minor version."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

PACKAGE = "infoprune.criteria"
MOVED = {
    "calibration": "infoprune.calibration",
    "distributed": "infoprune.distributed",
    "progress": "infoprune.progress",
    "objective": f"{PACKAGE}.payoffs",
    "feature_map": f"{PACKAGE}.activations.feature_map",
    "replay": f"{PACKAGE}.activations.suffix_replay",
} | {
    name: f"{PACKAGE}.measures.{name}"
    for name in [
        "capacity",
        "concentration",
        "distances",
        "feature_entropy",
        "feature_guided",
        "feature_rank",
        "independence",
        "rank_correlation",
    ]
}


class _Moved(ModuleType):
    """A module under its old name; its attributes come from the new module, with a DeprecationWarning."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system and inspect ask every module for
            raise AttributeError(name)
        new = MOVED[self.__name__.rpartition(".")[2]]
        warnings.warn(f"{self.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), name)


def alias_old_modules() -> None:
    """Let ``from infoprune.criteria.feature_guided import ...`` and the like find the new modules."""
    for name in MOVED:
        sys.modules.setdefault(f"{PACKAGE}.{name}", _Moved(f"{PACKAGE}.{name}"))
