"""`PendingEvent`: the next event of a fit, decided in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infoprune.criteria import Scores
from infoprune.structure import PruningPlan


@dataclass(frozen=True)
class PendingEvent:
    """The decision about the next event of a fit, made before the event.

    Attributes:
        fraction: share of the whole cut that is reached with the event.
        plan: what the event removes, by the network's names.
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
        """Return the event that `to_dict` wrote.

        Args:
            data: from a checkpoint.
        """
        return cls(data["fraction"], PruningPlan.from_dict(data["plan"]), dict(data["scores"]), data["latency"])
