"""Callbacks of infoprune for a Lightning Trainer."""

from infoprune.callbacks.distillation import Distillation
from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.report import RunReport
from infoprune.callbacks.sparsity import SparsityWarmup
from infoprune.callbacks.time_slice import TimeSlice

__all__ = ["Distillation", "FilterPruning", "RunReport", "SparsityWarmup", "TimeSlice"]
