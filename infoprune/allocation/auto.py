"""The default allocation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts
from infoprune.allocation.coupled_last import CoupledLast
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.information_loss import InformationLoss
from infoprune.allocation.solve import WidthsAt
from infoprune.allocation.uniform import Uniform
from infoprune.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure

logger = logging.getLogger(__name__)


@ALLOCATIONS.register("auto")
@dataclass(kw_only=True)
class Auto(Allocation):
    """Use ``information_loss`` if training images are given, else ``coupled_last``; ``uniform`` for ``filters``.

    If the images cannot be used (for example, because the model's forward does not accept the batches), the log gives
    the reason, and the widths are those of ``coupled_last``.
    """

    _measured: InformationLoss = field(default_factory=InformationLoss, init=False, repr=False, compare=False)

    needs_data: ClassVar[bool] = True

    def in_schedule(self, sizes: Mapping[str, int] | None) -> Auto:
        """Return a copy whose measurement knows the units before the first event.

        Args:
            sizes: Group name -> units before the first event; None before any.
        """
        aware = copy.copy(self)
        aware._measured = self._measured.in_schedule(sizes)
        return aware

    def prepared(
        self,
        model: nn.Module,
        structure: Structure,
        data: Iterable[Any] | None,
        *,
        scores: Scores | None = None,
        kind: str = "macs",
        keep: float = 0.0,
    ) -> Allocation:
        """Return the allocation that is used for these data and this kind of budget, measured."""
        if kind == "amount":
            return Uniform()
        if data is None:
            logger.info("widths by rule (coupled_last): pass training images as data to measure the loss of cuts")
            return CoupledLast()
        try:
            return self._measured.prepared(model, structure, data, scores=scores, kind=kind, keep=keep)
        except (DataError, ConfigurationError) as error:
            logger.warning("widths by rule (coupled_last), since the loss of cuts could not be measured: %s", error)
            return CoupledLast()

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return the widths of ``coupled_last``."""
        return CoupledLast().widths_at(structure, scores, grids, costs)

    def without_budget(
        self,
        structure: Structure,
        scores: Scores | None,
        grids: Mapping[str, WidthGrid],
        amount: float | None,
        fraction: float,
    ) -> dict[str, int]:
        """Take the same share from every group."""
        return Uniform().without_budget(structure, scores, grids, amount, fraction)
