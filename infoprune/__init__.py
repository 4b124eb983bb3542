"""infoprune: make trained CNNs smaller and faster, inside a Lightning fit or in plain PyTorch.

Everything public is reachable from here and loaded on first use, so ``import infoprune`` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from infoprune.loading import install_when_torch_is_there
from infoprune.version import __version__

if TYPE_CHECKING:
    from infoprune.allocation import Allocation
    from infoprune.api import PruneResult, prune
    from infoprune.backends import Latency, latency
    from infoprune.callbacks import FilterPruning, RunReport
    from infoprune.checkpoint import attach, load_from_checkpoint
    from infoprune.cost import Cost
    from infoprune.criteria import Criterion
    from infoprune.hub import from_pretrained, push_to_hub, save_pretrained
    from infoprune.inputs import Examples
    from infoprune.recalibration import recalibrate
    from infoprune.reconstruction import reconstruct
    from infoprune.saving import load, save
    from infoprune.schedule import Schedule
    from infoprune.structure import (
        PruningPlan,
        Structure,
        Verification,
        plan_of,
        register_rule,
        shrink,
        trace,
        verify,
    )
    from infoprune.within_drop import find_macs

_HOME = {
    "Allocation": "infoprune.allocation",
    "Cost": "infoprune.cost",
    "Criterion": "infoprune.criteria",
    "Examples": "infoprune.inputs",
    "FilterPruning": "infoprune.callbacks",
    "Latency": "infoprune.backends",
    "PruneResult": "infoprune.api",
    "PruningPlan": "infoprune.structure",
    "RunReport": "infoprune.callbacks",
    "Schedule": "infoprune.schedule",
    "Structure": "infoprune.structure",
    "Verification": "infoprune.structure",
    "attach": "infoprune.checkpoint",
    "find_macs": "infoprune.within_drop",
    "from_pretrained": "infoprune.hub",
    "latency": "infoprune.backends",
    "load": "infoprune.saving",
    "load_from_checkpoint": "infoprune.checkpoint",
    "plan_of": "infoprune.structure",
    "prune": "infoprune.api",
    "push_to_hub": "infoprune.hub",
    "recalibrate": "infoprune.recalibration",
    "reconstruct": "infoprune.reconstruction",
    "register_rule": "infoprune.structure",
    "save": "infoprune.saving",
    "save_pretrained": "infoprune.hub",
    "shrink": "infoprune.structure",
    "trace": "infoprune.structure",
    "verify": "infoprune.structure",
}


_SUBPACKAGES = ("allocation", "callbacks", "criteria", "data", "errors", "models", "report", "structure")

install_when_torch_is_there()


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"infoprune.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'infoprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBPACKAGES})


__all__ = [
    "Allocation",
    "Cost",
    "Criterion",
    "Examples",
    "FilterPruning",
    "Latency",
    "PruneResult",
    "PruningPlan",
    "RunReport",
    "Schedule",
    "Structure",
    "Verification",
    "__version__",
    "attach",
    "find_macs",
    "from_pretrained",
    "latency",
    "load",
    "load_from_checkpoint",
    "plan_of",
    "prune",
    "push_to_hub",
    "recalibrate",
    "reconstruct",
    "register_rule",
    "save",
    "save_pretrained",
    "shrink",
    "trace",
    "verify",
]
