"""Shapley values of channels: games, coalitions, sampling, and the criterion that scores with them."""

from infoprune.criteria.shapley.criterion import Shapley

__all__ = ["Shapley"]
