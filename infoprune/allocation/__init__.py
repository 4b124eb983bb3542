"""Decide how many filters each layer keeps, within a budget.

An :class:`Allocation` divides the sparsity among the channel groups. The budget solver, which all allocations share,
finds the sparsity that meets the budget. Both are pure: the same structure, scores and budget give the same widths.
"""

from infoprune.allocation.allocation import ALLOCATIONS, Allocation, get_allocation
from infoprune.allocation.auto import Auto
from infoprune.allocation.budget import Budget
from infoprune.allocation.coupled_last import CoupledLast
from infoprune.allocation.curves import LossCurves
from infoprune.allocation.global_ranking import GlobalRanking
from infoprune.allocation.information_concentration import InformationConcentration
from infoprune.allocation.information_loss import InformationLoss
from infoprune.allocation.isomorphic import Isomorphic
from infoprune.allocation.latency import LatencyShare
from infoprune.allocation.per_layer import PerLayer
from infoprune.allocation.per_stage import PerStage
from infoprune.allocation.select import select
from infoprune.allocation.uniform import Uniform

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Auto",
    "Budget",
    "CoupledLast",
    "GlobalRanking",
    "InformationConcentration",
    "InformationLoss",
    "Isomorphic",
    "LatencyShare",
    "LossCurves",
    "PerLayer",
    "PerStage",
    "Uniform",
    "get_allocation",
    "select",
]
