"""Score filters by their share of the energy that remains in their group when they are removed.

Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv 2010.07611, there for
single weights; here for filters, as Torch-Pruning applies it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.criteria.criterion import CRITERIA, Scores, WeightCriterion

if TYPE_CHECKING:
    from infoprune.structure import Structure


@CRITERIA.register("lamp")
@dataclass(kw_only=True)
class LAMP(WeightCriterion):
    """Divide the squared norm of a unit by the sum of the squared norms that are at least as large. Data-free.

    Within a group the order is that of `L2`. Unlike norms, the scores are comparable across groups: the largest unit of
    every group scores 1, so a `global` allocation empties no layer. Squared norms of coupled layers are summed.
    """

    normalize: str = "none"
    combine: str = "sum"

    filterwise = True

    def filter_scores(self, filters: Tensor) -> Tensor:
        """Return the squared norms (N,) of (N, C, K) filters."""
        return filters.square().sum(dim=(1, 2))

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Return group name -> (units,) shares, in [0, 1]."""
        energies = super().group_scores(model, structure, data)
        return {name: share_of_remaining(values) for name, values in energies.items()}


def share_of_remaining(values: Tensor) -> Tensor:
    """Divide each value by the sum of all values that are at least as large; zeros stay zeros.

    Args:
        values: (n,) nonnegative numbers.

    Returns:
        (n,) shares, in [0, 1]; equal values take equal shares.

    >>> share_of_remaining(torch.tensor([1.0, 3.0, 4.0])).tolist()
    [0.125, 0.4285714328289032, 1.0]
    >>> share_of_remaining(torch.tensor([2.0, 2.0])).tolist()
    [0.5, 0.5]
    """
    ordered, order = values.sort(descending=True)
    # equal values share one sum, so that their order in memory decides nothing
    last_equal = torch.searchsorted(-ordered, -ordered, right=True) - 1
    remaining = ordered.cumsum(dim=0)[last_equal]
    shares = torch.where(remaining > 0, ordered / remaining, torch.zeros_like(ordered))
    return torch.empty_like(shares).scatter_(0, order, shares)
