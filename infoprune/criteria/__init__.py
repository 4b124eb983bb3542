"""Score how much each filter matters: one criterion per file.

A criterion maps a model to :data:`Scores`: for every prunable channel group a float64 CPU tensor with one score per
unit, higher = keep. ``get_criterion("l1")`` finds one by name; a new one is a dataclass derived from
:class:`WeightCriterion` (filters alone), :class:`FeatureMapCriterion` (feature maps of images) or
:class:`LayerCriterion` (anything else) under ``@CRITERIA.register("its_name")``.
"""

from infoprune.criteria._moved import alias_old_modules
from infoprune.criteria.activations.feature_map import FeatureMapCriterion
from infoprune.criteria.batchnorm_scale import BatchNormScale
from infoprune.criteria.capacity_independence import CapacityIndependence
from infoprune.criteria.chip import CHIP
from infoprune.criteria.criterion import (
    CRITERIA,
    Criterion,
    LayerCriterion,
    Scores,
    WeightCriterion,
    get_criterion,
)
from infoprune.criteria.geometric_median import GeometricMedian
from infoprune.criteria.grouped_taylor import GroupedTaylor
from infoprune.criteria.hessian import Hessian
from infoprune.criteria.hrank import HRank
from infoprune.criteria.lamp import LAMP
from infoprune.criteria.least_squares import LeastSquares
from infoprune.criteria.norms import L1, L2
from infoprune.criteria.preserved import preserved
from infoprune.criteria.random import Random
from infoprune.criteria.shapley import Shapley
from infoprune.criteria.taylor import Taylor

__all__ = [
    "CHIP",
    "CRITERIA",
    "L1",
    "L2",
    "LAMP",
    "BatchNormScale",
    "CapacityIndependence",
    "Criterion",
    "FeatureMapCriterion",
    "GeometricMedian",
    "GroupedTaylor",
    "HRank",
    "Hessian",
    "LayerCriterion",
    "LeastSquares",
    "Random",
    "Scores",
    "Shapley",
    "Taylor",
    "WeightCriterion",
    "get_criterion",
    "preserved",
]

alias_old_modules()
