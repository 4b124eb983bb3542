"""How much each filter matters: one file a criterion.

A criterion maps a model to :data:`Scores`: for every prunable channel group a float64 CPU tensor with one score per
unit, higher = keep. ``get_criterion("l1")`` finds one by name; a new one is a dataclass derived from
:class:`WeightCriterion` (filters alone) or :class:`Criterion` (anything else) under
``@CRITERIA.register("its_name")``.
"""

from infoprune.criteria.batchnorm_scale import BatchNormScale
from infoprune.criteria.capacity_independence import CapacityIndependence
from infoprune.criteria.criterion import CRITERIA, Criterion, Scores, WeightCriterion, get_criterion
from infoprune.criteria.geometric_median import GeometricMedian
from infoprune.criteria.norms import L1, L2
from infoprune.criteria.random import Random

__all__ = [
    "CRITERIA",
    "L1",
    "L2",
    "BatchNormScale",
    "CapacityIndependence",
    "Criterion",
    "GeometricMedian",
    "Random",
    "Scores",
    "WeightCriterion",
    "get_criterion",
]
