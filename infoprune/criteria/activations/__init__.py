"""Activations of layers: tap them, score them as feature maps, replay the layers behind them."""

from infoprune.criteria.activations.feature_map import FeatureMapCriterion
from infoprune.criteria.activations.tap import ActivationTap, stream_activations

__all__ = ["ActivationTap", "FeatureMapCriterion", "stream_activations"]
