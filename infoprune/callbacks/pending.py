"""What an engine is told, and what it has decided: its options, and the event that comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from infoprune.allocation import Allocation
from infoprune.criteria import Criterion, Scores
from infoprune.decide import Target
from infoprune.structure import PruningPlan


@dataclass(frozen=True)
class PendingEvent:
    """What the next event of a fit will remove, decided before the event.

    Attributes:
        fraction: share of the whole cut that is reached with the event.
        plan: what goes, by the network's names.
        scores: the scores that decided.
        latency: with a latency budget, the share of the unpruned model's time that was measured at these widths.
    """

    fraction: float
    plan: PruningPlan
    scores: Scores
    latency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain data, for a checkpoint."""
        return {
            "fraction": self.fraction,
            "plan": self.plan.to_dict(),
            "scores": dict(self.scores),
            "latency": self.latency,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PendingEvent:
        """Return the event that `to_dict` wrote."""
        return cls(data["fraction"], PruningPlan.from_dict(data["plan"]), dict(data["scores"]), data["latency"])


@dataclass(frozen=True)
class EngineOptions:
    """The options of `FilterPruning` that decide what goes; see there."""

    criterion: Criterion
    target: Target
    allocation: Allocation
    frozen: tuple[str | nn.Module, ...] = ()
    example_inputs: Any = None
    module: str | None = None
    follow: Mapping[str, str] | None = None
    calibration_images: int = 640
    recalibration_batches: int = 0
    verify: bool = True
