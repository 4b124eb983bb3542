"""Method A: information capacity and independence of filters.

After Tang et al., "Filter Pruning based on Information Capacity and Independence", arXiv 2303.03645 and IEEE TNNLS
36(5), 2025. This is a *reconstruction*: the paper's formulas are not all public and there is no official code.

- The paper's: filters are judged by an entropy of each filter (capacity) and by its correlation with the others
  (independence), without data at scoring time; filters low in both are removed.
- Inferred (from a summary and derived works): one balancing parameter fuses both into one score, ranked within a
  layer after each metric is mapped to [0, 1].
- Ours: which entropy, which distance, the balance. The defaults are the best estimators on ResNet-56; the
  scale-free estimators (``kernel_norm``, ``kernel_knn``, ``correlation``) were worse than random there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune.criteria.aggregation import minmax
from infoprune.criteria.criterion import CRITERIA, WeightCriterion
from infoprune.criteria.measures.capacity import CAPACITIES, capacity
from infoprune.criteria.measures.independence import INDEPENDENCES, independence
from infoprune.registry import check_choice, check_count, check_number


@CRITERIA.register("capacity_independence")
@dataclass(kw_only=True)
class CapacityIndependence(WeightCriterion):
    """``balance`` x capacity + (1 - ``balance``) x independence, each mapped to [0, 1] over the layer. Data-free.

    A metric that is the same for all filters of a layer counts 0 there.

    Args:
        capacity: ``"histogram"`` (over the layer's common range), ``"gaussian"``, ``"kernel_norm"`` or
            ``"kernel_knn"``; see :mod:`infoprune.criteria.measures.capacity`.
        independence: ``"l2_all"``, ``"l2_knn"`` or ``"correlation"``; see
            :mod:`infoprune.criteria.measures.independence`.
        balance: Weight of the capacity in [0, 1]; 1 and 0 are the single-metric ablations.
        bins: Bins of ``histogram``.
        neighbours: Nearest kernels of ``kernel_knn`` and nearest filters of ``l2_knn``.

    Example:
        >>> filters = torch.tensor([[[1.0, -1.0]], [[0.1, 0.1]], [[0.1, 0.1]]], dtype=torch.float64)
        >>> CapacityIndependence().filter_scores(filters).tolist()  # the distinct filter stays, its copies may go
        [1.0, 0.0, 0.0]
    """

    capacity: str = "histogram"
    independence: str = "l2_all"
    balance: float = 0.5
    bins: int = 32
    neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.label, "capacity", self.capacity, CAPACITIES)
        check_choice(self.label, "independence", self.independence, INDEPENDENCES)
        check_number(self.label, "balance", self.balance, 0, 1)
        check_count(self.label, "bins", self.bins, 2)
        check_count(self.label, "neighbours", self.neighbours, 1)

    def filter_scores(self, filters: Tensor) -> Tensor:
        """Return scores in [0, 1], (N,), of (N, C, K) filters."""
        score = torch.zeros(len(filters), dtype=filters.dtype)
        if self.balance > 0:
            score += self.balance * minmax(capacity(filters, self.capacity, self.bins, self.neighbours))
        if self.balance < 1:
            score += (1 - self.balance) * minmax(independence(filters, self.independence, self.neighbours))
        return score
