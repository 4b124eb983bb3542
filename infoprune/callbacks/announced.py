"""A cut that was decided before its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infoprune.criteria import Scores
from infoprune.structure import PruningPlan


@dataclass(frozen=True)
class Announced:
    """What the next event of a fit will remove.

    Attributes:
        fraction: how much of the whole cut the event reaches.
        plan: what goes, by the network's names.
        scores: by which that was decided.
        latency: the share of the original's time that was measured at these widths, with a latency budget.
    """

    fraction: float
    plan: PruningPlan
    scores: Scores
    latency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint may hold."""
        return {
            "fraction": self.fraction,
            "plan": self.plan.to_dict(),
            "scores": dict(self.scores),
            "latency": self.latency,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Announced:
        """Read what `to_dict` wrote."""
        return cls(data["fraction"], PruningPlan.from_dict(data["plan"]), dict(data["scores"]), data["latency"])
