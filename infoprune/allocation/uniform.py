"""Give every group the same ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts, unit_costs
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure


@ALLOCATIONS.register("uniform")
@dataclass(kw_only=True)
class Uniform(Allocation):
    """Keep the same share of the units of every prunable group.

    With an amount a, a group keeps ``int(size * (1 - a))``. Under a budget the ratio that meets it is found; single
    groups are then widened by single units to spend the rest that rounding leaves.

    Args:
        equal: Do not widen single groups, so that groups of equal size keep equal widths; layers whose weights are
            stacked need that. The part of a budget that rounding leaves stays unspent.
    """

    equal: bool = False

    @property
    @override
    def single_units(self) -> bool:
        """Return whether single groups may be a unit wider or narrower, to meet a budget."""
        return not self.equal

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return all groups at the share 1 - sparsity."""
        return lambda sparsity: {name: grid.at(1 - sparsity) for name, grid in grids.items()}

    def without_budget(
        self,
        structure: Structure,
        scores: Scores | None,
        grids: Mapping[str, WidthGrid],
        amount: float | None,
        fraction: float,
    ) -> Widths:
        """Take ``fraction`` x ``amount`` of the units from every group."""
        return self.widths_at(structure, scores, grids, unit_costs(structure, "amount"))(
            fraction * self.need_amount(amount)
        )
