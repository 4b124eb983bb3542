"""The Lightning face of infoprune: callbacks for a Trainer."""

from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.report import RunReport

__all__ = ["FilterPruning", "RunReport"]
