"""Which channels live and die together, and removing them."""

from infoprune.structure.flow import Flow, get_flow
from infoprune.structure.groups import ChannelGroup, GroupSlot, Layer, Structure
from infoprune.structure.memory import plan_of
from infoprune.structure.plan import PruningPlan
from infoprune.structure.rules import rule
from infoprune.structure.shrink import shrink
from infoprune.structure.trace import check_plan, trace
from infoprune.structure.verify import Verification, verify

__all__ = [
    "ChannelGroup",
    "Flow",
    "GroupSlot",
    "Layer",
    "PruningPlan",
    "Structure",
    "Verification",
    "check_plan",
    "get_flow",
    "plan_of",
    "rule",
    "shrink",
    "trace",
    "verify",
]
