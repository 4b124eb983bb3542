"""Score filters by their distance from the layer's geometric median; replaceable filters are removed.

Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (FPGM),
CVPR 2019. As in their code, a filter's closeness to the median is measured by its summed distance to all filters of
the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from infoprune.criteria.criterion import CRITERIA, WeightCriterion
from infoprune.criteria.measures.distances import sum_of_l2


@CRITERIA.register("geometric_median")
@dataclass(kw_only=True)
class GeometricMedian(WeightCriterion):
    """Sum a filter's Euclidean distances to all filters of its layer. Data-free."""

    def filter_scores(self, filters: Tensor) -> Tensor:
        """Return the summed distances (N,) of (N, C, K) filters."""
        return sum_of_l2(filters.flatten(1))
