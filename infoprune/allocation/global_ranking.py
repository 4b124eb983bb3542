"""Rank the units of all layers together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt
from infoprune.criteria.aggregation import NORMALIZE, normalized
from infoprune.errors import ConfigurationError
from infoprune.registry import check_choice, check_number

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure


@ALLOCATIONS.register("global")
@dataclass(kw_only=True)
class GlobalRanking(Allocation):
    """Remove the units with the lowest scores of the whole model first; every group keeps a floor.

    An amount is the share of all units to remove. Scores of different layers need a common scale: the mean score of a
    group counts as 1 by default.

    Args:
        floor: Share of its units that every group keeps at least, in [0, 1].
        normalize: ``"mean"``, ``"minmax"``, or ``"none"`` for scores that already compare across layers, such as the
            estimated change of the loss.
    """

    floor: float = 0.1
    normalize: str = "mean"

    def __post_init__(self) -> None:
        check_number("allocation 'global'", "floor", self.floor, 0, 1)
        check_choice("allocation 'global'", "normalize", self.normalize, NORMALIZE)

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Remove units in ascending order of their scores; the best ``floor`` of each group never goes."""
        if scores is None:
            raise ConfigurationError("allocation 'global' ranks scores: pass the scores of a criterion")
        names = list(grids)
        order = self._order([scores[name] for name in names])

        def widths(sparsity: float) -> Widths:
            gone = torch.bincount(order[: round(sparsity * len(order))], minlength=len(names)).tolist()
            return {
                name: grid.at((grid.size - lost) / (grid.original or grid.size))
                for (name, grid), lost in zip(grids.items(), gone, strict=True)
            }

        return widths

    def _order(self, scores: list[torch.Tensor]) -> torch.Tensor:
        """Return the groups in the order in which they lose a unit."""
        values, owners = [], []
        for owner, group_scores in enumerate(scores):
            safe = max(1, round(self.floor * len(group_scores)))
            removable = len(group_scores) - safe
            values.append(normalized(group_scores, self.normalize).sort(stable=True).values[:removable])
            owners.append(torch.full((removable,), owner))
        return torch.cat(owners)[torch.cat(values).argsort(stable=True)]
