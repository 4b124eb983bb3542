"""The Lightning face of infoprune: callbacks for a Trainer."""

from infoprune.callbacks.distillation import Distillation
from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.report import RunReport

__all__ = ["Distillation", "FilterPruning", "RunReport"]
