"""Base of allocations that are given a ratio for every group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import Allocation
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure


@dataclass(kw_only=True)
class RatioAllocation(Allocation):
    """Keep ``int(size * (1 - ratio))`` units of each group; under a budget, all ratios are scaled by one factor."""

    @abstractmethod
    def ratios_of(self, structure: Structure) -> dict[str, float]:
        """Return group name -> share of units to remove, in [0, 1); groups that are not named keep everything.

        Args:
            structure: The channel groups.
        """

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return the ratios scaled from 0 to where even the smallest of them empties its group."""
        ratios = self.ratios_of(structure)
        largest = 1 / min((ratio for ratio in ratios.values() if ratio > 0), default=1.0)
        return lambda sparsity: _scaled(ratios, sparsity * largest, grids)

    def without_budget(
        self,
        structure: Structure,
        scores: Scores | None,
        grids: Mapping[str, WidthGrid],
        amount: float | None,
        fraction: float,
    ) -> Widths:
        """Return the ratios scaled by ``fraction``."""
        if amount is not None:
            raise ConfigurationError(
                f"an amount of {amount:g} and the ratios of {self.label} both say how many units go: give one"
            )
        return _scaled(self.ratios_of(structure), fraction, grids)


def _scaled(ratios: Mapping[str, float], scale: float, grids: Mapping[str, WidthGrid]) -> Widths:
    return {name: grid.at(max(0.0, 1 - scale * ratios.get(name, 0.0))) for name, grid in grids.items()}


def check_ratio(owner: str, ratio: object) -> float:
    """Return ``ratio`` as a float; raise a ConfigurationError that names its owner unless it is in [0, 1).

    Args:
        owner: The allocation and the layer, for the message.
        ratio: Share of the units to remove.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ConfigurationError(f"{owner}: a ratio is the share of units to remove, in [0, 1); got {ratio!r}")
    return float(ratio)
