"""What layers put out: tapped while the model runs, scored as feature maps, and computed anew from one layer on."""

from infoprune.criteria.activations.feature_map import FeatureMapCriterion
from infoprune.criteria.activations.tap import ActivationTap, stream_activations

__all__ = ["ActivationTap", "FeatureMapCriterion", "stream_activations"]
