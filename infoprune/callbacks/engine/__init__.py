"""Prune the network of a running fit: `PruningEngine` and its parts."""

from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.pruning_engine import PruningEngine

__all__ = ["EngineOptions", "PruningEngine"]
