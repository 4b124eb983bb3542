"""Rank units among groups of equal structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import ALLOCATIONS
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.global_ranking import GlobalRanking
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import ChannelGroup, Structure


@ALLOCATIONS.register("isomorphic")
@dataclass(kw_only=True)
class Isomorphic(GlobalRanking):
    """Rank units among groups of the same structure; every kind of structure loses the same share.

    Scores of a residual stream and of a layer inside a block have no common scale. Groups are of one structure if equal
    numbers of layers of the same kinds write and read their channels, whatever their widths.

    Source: Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024.

    Args:
        floor: Share of its units that every group keeps at least, in [0, 1].
        normalize: See :class:`GlobalRanking`.
    """

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return the widths of a global ranking within each kind of structure."""
        kinds: dict[object, dict[str, WidthGrid]] = {}
        for name, grid in grids.items():
            kinds.setdefault(_kind(structure, structure.group(name)), {})[name] = grid
        rankings = [super(Isomorphic, self).widths_at(structure, scores, alike, costs) for alike in kinds.values()]

        def widths(sparsity: float) -> Widths:
            found = {name: width for ranking in rankings for name, width in ranking(sparsity).items()}
            return {name: found[name] for name in grids}

        return widths


def _kind(structure: Structure, group: ChannelGroup) -> object:
    """Return how many layers of each kind write a group's channels, and how many read them."""
    writers = Counter(layer.kind for layer, _ in structure.producers(group))
    places = {(slot.tensor, slot.dim) for slot in group.slots}
    readers = Counter(
        layer.kind
        for layer in structure.layers
        if any(tensor == layer.weight and dim != layer.dim for tensor, dim in places)
    )
    return frozenset(writers.items()), frozenset(readers.items())
