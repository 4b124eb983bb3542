"""Score filters by their norms; the smallest are removed.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (L1; L2 is their comparison).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune.criteria.criterion import CRITERIA, WeightCriterion


@CRITERIA.register("l1")
@dataclass(kw_only=True)
class L1(WeightCriterion):
    """Sum a filter's absolute weights. Data-free."""

    filterwise = True
    sums_in_float64 = True

    def filter_scores(self, filters: Tensor) -> Tensor:
        """Return the L1 norms (N,) of (N, C, K) filters."""
        return filters.abs().sum(dim=(1, 2), dtype=torch.float64)


@CRITERIA.register("l2")
@dataclass(kw_only=True)
class L2(WeightCriterion):
    """Compute the Euclidean norm of a filter. Data-free."""

    filterwise = True

    def filter_scores(self, filters: Tensor) -> Tensor:
        """Return the L2 norms (N,) of (N, C, K) filters."""
        return filters.flatten(1).norm(dim=1)
