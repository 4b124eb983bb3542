"""infoprune: make trained CNNs smaller and faster, inside a Lightning fit or in plain PyTorch.

Everything public is reachable from here and loaded on first use, so ``import infoprune`` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from infoprune.version import __version__

if TYPE_CHECKING:
    from infoprune.api import PruneResult, load, prune, save
    from infoprune.callbacks import FilterPruning
    from infoprune.checkpoint import attach, load_from_checkpoint
    from infoprune.cost import Cost, Latency, latency
    from infoprune.recalibration import recalibrate
    from infoprune.structure import PruningPlan, Structure, Verification, plan_of, shrink, trace, verify

_HOME = {
    "Cost": "infoprune.cost",
    "FilterPruning": "infoprune.callbacks",
    "Latency": "infoprune.cost",
    "PruneResult": "infoprune.api",
    "PruningPlan": "infoprune.structure",
    "Structure": "infoprune.structure",
    "Verification": "infoprune.structure",
    "attach": "infoprune.checkpoint",
    "latency": "infoprune.cost",
    "load": "infoprune.api",
    "load_from_checkpoint": "infoprune.checkpoint",
    "plan_of": "infoprune.structure",
    "prune": "infoprune.api",
    "recalibrate": "infoprune.recalibration",
    "save": "infoprune.api",
    "shrink": "infoprune.structure",
    "trace": "infoprune.structure",
    "verify": "infoprune.structure",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'infoprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


__all__ = [
    "Cost",
    "FilterPruning",
    "Latency",
    "PruneResult",
    "PruningPlan",
    "Structure",
    "Verification",
    "__version__",
    "attach",
    "latency",
    "load",
    "load_from_checkpoint",
    "plan_of",
    "prune",
    "recalibrate",
    "save",
    "shrink",
    "trace",
    "verify",
]
