"""The same ratio everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.grid import Grid
from infoprune.allocation.solve import Path, Widths

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure


@ALLOCATIONS.register("uniform")
@dataclass(kw_only=True)
class Uniform(Allocation):
    """Every prunable group keeps the same share of its units.

    With an amount a, a group keeps ``int(size * (1 - a))``. Under a budget the one ratio that meets it is found, and
    single units of single groups then use up what rounding leaves.
    """

    def path(self, structure: Structure, scores: Scores | None, grids: Mapping[str, Grid]) -> Path:
        """All groups at the share 1 - pressure."""
        return lambda pressure: {name: grid.at(1 - pressure) for name, grid in grids.items()}

    def without_budget(
        self,
        structure: Structure,
        scores: Scores | None,
        grids: Mapping[str, Grid],
        amount: float | None,
        fraction: float,
    ) -> Widths:
        """Every group loses ``fraction`` x ``amount`` of its units."""
        return self.path(structure, scores, grids)(fraction * self.need_amount(amount))
