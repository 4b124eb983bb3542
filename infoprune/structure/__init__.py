"""Which channels live and die together, and removing them."""

from infoprune.structure.groups import ChannelGroup, GroupSlot, Layer, Structure
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery.history import plan_of
from infoprune.structure.surgery.shrink import shrink
from infoprune.structure.trace import check_plan, trace
from infoprune.structure.tracing.rules import rule
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
    "rule",
    "shrink",
    "trace",
    "verify",
]
