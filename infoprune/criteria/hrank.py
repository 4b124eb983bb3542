"""Score filters by the average rank of their feature maps.

Source: Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020; 5 batches of 128 training images
as in their code. Theirs reads the activation function's output, one layer at a time with a forward pass each; here
all layers are observed in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from infoprune.criteria.activations.feature_map import FeatureMapCriterion
from infoprune.criteria.criterion import CRITERIA
from infoprune.criteria.measures.feature_rank import feature_ranks


@CRITERIA.register("hrank")
@dataclass(kw_only=True)
class HRank(FeatureMapCriterion):
    """Mean rank of a filter's feature maps.

    Cost: one forward pass for each image, and a singular value decomposition for each map that is not trivially of
    rank 0 or 1. Maps of a single pixel have rank 0 or 1: then the score is how often the filter responds.
    """

    def map_scores(self, maps: Tensor) -> Tensor:
        """Return the ranks of maps: (B, C, H, W) -> (B, C)."""
        return feature_ranks(maps.flatten(0, 1)).view(maps.shape[:2])
