"""Find the channels of a model that must be removed together, and remove them.

Four levels, each of which imports only those before it: ``labels``, ``tracing``, ``validation``, ``surgery``.
"""

import warnings
from typing import Any

from infoprune.structure.channel_groups import ChannelGroup, GroupSlot
from infoprune.structure.groups import Structure
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of
from infoprune.structure.layers import Layer
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery.history import plan_of
from infoprune.structure.surgery.shrink import shrink
from infoprune.structure.trace import check_plan, trace
from infoprune.structure.tracing.rules import register_rule
from infoprune.structure.verify import Verification, verify

__all__ = [
    "ChannelGroup",
    "GroupSlot",
    "Layer",
    "PruningPlan",
    "Structure",
    "TensorLabels",
    "Verification",
    "check_plan",
    "labels_of",
    "plan_of",
    "register_rule",
    "shrink",
    "trace",
    "verify",
]

_RENAMED = {"Flow": TensorLabels, "get_flow": labels_of, "rule": register_rule}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module 'infoprune.structure' has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(
        f"infoprune.structure.{name} is now {new.__name__}; the old name goes in 0.3",  # type: ignore[attr-defined]
        DeprecationWarning,
        stacklevel=2,
    )
    return new
