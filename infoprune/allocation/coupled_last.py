"""Allocate widths without data: cut groups that several layers add to last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.coupled import coupled_groups
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt
from infoprune.registry import check_number

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure


@ALLOCATIONS.register("coupled_last")
@dataclass(kw_only=True)
class CoupledLast(Allocation):
    """Keep groups that several layers add to, such as residual streams, whole until all others are at a floor.

    A channel of a residual stream is written by every block of a stage and read by the next ones, so it carries
    far more information than a channel inside a block. The other groups keep equal shares. Needs no data; if no group
    is coupled, the widths are those of ``uniform``.

    Args:
        floor: Share of its units that every other group keeps before coupled groups are cut, in (0, 1].
    """

    floor: float = 0.25

    def __post_init__(self) -> None:
        check_number("allocation 'coupled_last'", "floor", self.floor, 0, 1)

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return widths in three equal phases: single groups to the floor, coupled groups to it, all to the minimum."""
        coupled = coupled_groups(structure)

        def widths(sparsity: float) -> Widths:
            below = self.floor * min(1.0, 3 - 3 * sparsity)
            single = max(below, 1 - 3 * sparsity * (1 - self.floor))
            shared = max(below, 1 - max(0.0, 3 * sparsity - 1) * (1 - self.floor))
            return {name: grid.at(shared if name in coupled else single) for name, grid in grids.items()}

        return widths
