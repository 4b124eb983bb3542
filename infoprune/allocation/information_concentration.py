"""Allocate widths by the information concentration of layers: the first half of method B.

After Chen & Wang, arXiv 2408.16772; a reconstruction, see :mod:`infoprune.criteria.measures.concentration`. The paper
uses information concentration "as a reference" for the layers' ratios; the formula and the hard budget are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.solve import Widths, WidthsAt
from infoprune.criteria.measures.concentration import Concentration
from infoprune.errors import ConfigurationError
from infoprune.registry import check_number

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import ChannelGroup, Structure


@ALLOCATIONS.register("information_concentration")
@dataclass(kw_only=True)
class InformationConcentration(Allocation):
    """Give groups widths in proportion to the information in their layers' outputs.

    A group's kept share is ``clip(k * (IC / mean IC) ** sharpness, floor, 1)``, with k found by the budget or the
    amount. A group of coupled layers takes the mean concentration of its layers.

    Needs data once: ``InformationConcentration().prepared(model, structure, batches)`` returns a copy that holds the
    concentrations and is pure from then on.

    Args:
        rank: See :class:`~infoprune.criteria.measures.concentration.Concentration`, as the next five.
        entropy: Which entropy.
        fusion: Which mean of rank and entropy.
        rank_weight: Weight of the rank in it.
        bins: Bins of histograms.
        images: Number of calibration images.
        sharpness: Larger makes widths more uneven; 0 is uniform.
        floor: Smallest share that a group keeps.
        by_stage: Average the concentration over groups of the same size and kind, as published configurations are
            constant within a stage.
        concentrations: Layer name -> information concentration, if it was measured before.
    """

    rank: str = "layer"
    entropy: str = "hist"
    fusion: str = "harmonic"
    rank_weight: float = 0.5
    bins: int = 32
    images: int = 640
    sharpness: float = 1.0
    floor: float = 0.1
    by_stage: bool = False
    concentrations: Mapping[str, float] | None = None

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("allocation 'information_concentration'", "sharpness", self.sharpness, 0)
        check_number("allocation 'information_concentration'", "floor", self.floor, 0, 1)
        self._how()

    def _how(self) -> Concentration:
        names = [field.name for field in dataclasses.fields(Concentration)]
        return Concentration(**{name: getattr(self, name) for name in names})

    def prepared(
        self,
        model: nn.Module,
        structure: Structure,
        data: Iterable[Any] | None,
        *,
        scores: Scores | None = None,
        kind: str = "macs",
        keep: float = 0.0,
    ) -> InformationConcentration:
        """Return a copy with the concentrations measured on ``data``; this one if it has them."""
        if self.concentrations is not None:
            return self
        if data is None:
            raise ConfigurationError(
                "allocation 'information_concentration' measures activations: pass batches of training images as data"
            )
        how = self._how()
        return dataclasses.replace(self, concentrations=how.fuse(how.measure(model, structure, data)))

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return shares proportional to the concentrations, scaled down from whole groups."""
        weights = self._weights(structure, [structure.group(name) for name in grids])
        largest = 1 / min((weight for weight in weights.values() if weight > 0), default=1.0)

        def share(name: str, sparsity: float) -> float:
            if sparsity <= 0:
                return 1.0
            return min(1.0, max(self.floor, (1 - sparsity) * largest * weights[name]))

        def widths(sparsity: float) -> Widths:
            return {name: grid.at(share(name, sparsity)) for name, grid in grids.items()}

        return widths

    def _weights(self, structure: Structure, groups: list[ChannelGroup]) -> dict[str, float]:
        """Return (IC / mean IC) ** sharpness of each group."""
        if self.concentrations is None:
            raise ConfigurationError(
                "allocation 'information_concentration' has nothing measured yet: call prepared(model, structure, data)"
            )
        layers = {group.name: [layer.name for layer, _ in structure.producers(group)] for group in groups}
        missing = [name for names in layers.values() for name in names if name not in self.concentrations]
        if missing:
            raise ConfigurationError(
                f"allocation 'information_concentration': no concentration of {missing[0]}; measure this structure"
            )
        values = {
            name: sum(self.concentrations[layer] for layer in names) / len(names) for name, names in layers.items()
        }
        if self.by_stage:
            # Equal widths and equal numbers of layers stand for a stage of a residual network.
            stages: dict[tuple[int, bool], list[str]] = {}
            for group in groups:
                stages.setdefault((group.size, len(layers[group.name]) > 1), []).append(group.name)
            values = {
                name: sum(values[member] for member in members) / len(members)
                for members in stages.values()
                for name in members
            }
        mean = sum(values.values()) / len(values) or 1.0
        return {name: (value / mean) ** self.sharpness for name, value in values.items()}
