"""Allocate widths by measured information loss: how far the outputs move when a group is cut."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from infoprune.allocation.allocation import ALLOCATIONS, Allocation
from infoprune.allocation.budget import UnitCosts, unit_costs
from infoprune.allocation.coupled import coupled_groups
from infoprune.allocation.curves import LossCurves
from infoprune.allocation.descent import descend, through
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.measure_loss import LossMeter
from infoprune.allocation.solve import Widths, WidthsAt
from infoprune.errors import ConfigurationError
from infoprune.progress import Progress
from infoprune.registry import check_count, check_number

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import Structure

logger = logging.getLogger(__name__)

OWNER = "allocation 'information_loss'"

ROUNDS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
"""Shares of the cost at which the curves are measured again."""

FIRST_LEVELS = (0.75, 0.5, 0.25, 0.125)
LATER_LEVELS = (0.75, 0.5)
"""Shares of a group's units at which a round measures."""

FLOORS = (0.125, 0.25, 0.35, 0.5)
"""Candidate floors, as shares of a group's units. The first is used if no measurement ranks them."""


@ALLOCATIONS.register("information_loss")
@dataclass(kw_only=True)
class InformationLoss(Allocation):
    """Remove the units that lose the least information about the outputs for the cost that they save.

    Every group is cut alone to a few widths, batch norm uses the statistics of the cut model, and the outputs are
    compared with the original's: by the KL divergence, in nats, for class scores (for each pixel in segmentation), else
    by the relative squared error; the losses of several outputs are summed. With ``rounds`` above 1, the curves are
    measured again at lower costs, on a model that is already cut.

    Needs data once: ``InformationLoss().prepared(model, structure, batches, scores=scores)`` returns a copy that holds
    the curves and is pure from then on.

    Args:
        images: Number of calibration images; all of the data if it holds fewer. None: 256, or as many as hold ten
            million numbers, such as 64 images of 3 x 224 x 224. The first 64 of them measure most groups, or the first
            16 where images are that large.
        rounds: How often the curves are measured: once on the whole model, then at 70, 50, 35, 25, 18 and 12 % of the
            cost, down to the budget.
        floor: Share of its units that every group keeps until all groups are at this floor; in [0, 1]. None compares
            0.125, 0.25, 0.35 and 0.5: for each, it measures the loss of all cuts at once at the budget, and it uses the
            floor with the least loss. It uses 0.125 if the budget is not known when the curves are measured, or if all
            four lose all information that the outputs have about the images, so that their order means nothing.
        coupled_floor: The same for groups that several layers add to, such as residual streams, if it is more than
            ``floor``; in [0, 1]. Cutting one part of a stream costs little, cutting all parts costs much.
        depth: Penalty in nats for each factor e by which a group becomes narrower, added to the measured loss. A group
            that many layers write counts no more than another, so a large penalty cuts residual streams.
        evaluate: A function of a model that returns its quality, higher is better, instead of comparing outputs.
        curves: Loss curves that were measured before, or the file that holds them.
        progress: Whether to show a progress bar; None shows it on terminals.

    Raises:
        ConfigurationError: an option out of range; (when it measures) no data.
        DataError: (when it measures) no image, or outputs that are not finite; the message names the group.
    """

    images: int | None = None
    rounds: int = 1
    floor: float | None = None
    coupled_floor: float = 0.5
    depth: float = 0.0
    evaluate: Callable[[nn.Module], float] | None = None
    curves: LossCurves | str | None = None
    progress: bool | None = None
    _sizes: Mapping[str, int] | None = field(default=None, init=False, repr=False, compare=False)
    """Group name -> units before the first event, which floors are shares of."""

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.images is not None:
            check_count(OWNER, "images", self.images, 1)
        check_count(OWNER, "rounds", self.rounds, 1)
        if self.floor is not None:
            check_number(OWNER, "floor", self.floor, 0, 1)
        check_number(OWNER, "coupled_floor", self.coupled_floor, 0, 1)
        check_number(OWNER, "depth", self.depth, 0)
        if isinstance(self.curves, str):
            self.curves = LossCurves.load(self.curves)

    @property
    def options(self) -> dict[str, Any]:
        """The options that are plain data; curves and a function of the user's are none."""
        return {name: value for name, value in super().options.items() if name not in ("curves", "evaluate")}

    def in_schedule(self, sizes: Mapping[str, int] | None) -> InformationLoss:
        """Return a copy whose floors are shares of these units, not of those that are left.

        Args:
            sizes: Group name -> units before the first event; None before any.
        """
        aware = copy.copy(self)
        aware._sizes = sizes
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
    ) -> InformationLoss:
        """Return a copy with the curves measured on ``data``; this one if it has them.

        Args:
            model: The model that ``structure`` was traced from. It is not changed.
            structure: Its channel groups.
            data: Batches of training images.
            scores: Which units of a group go first.
            kind: What the budget is of.
            keep: How much of it stays, 0 if that is not known yet; rounds below are left out.
        """
        if self.curves is not None:
            return self
        if data is None and self.evaluate is None:
            raise ConfigurationError(f"{OWNER} measures the model: pass batches of training images as data")
        if scores is None:
            raise ConfigurationError(f"{OWNER} cuts the units with the lowest scores: pass the scores of a criterion")
        meter = LossMeter(
            model, structure, scores, getattr(data, "as_trained", data) or (), self.images, self.evaluate, OWNER
        )
        original = self._sizes or {}
        grids = {name: WidthGrid(group.size, original=original.get(name)) for name, group in meter.groups.items()}
        widths = {name: grid.size for name, grid in grids.items()}
        # Each further round measures from a model that is cut already, because losses of single cuts do not add up.
        shares = [share for share in ROUNDS[: self.rounds - 1] if share > keep]
        levels = {name: _levels(width, FIRST_LEVELS) for name, width in widths.items()}
        curves = LossCurves((), meter.unit, meter.images)
        floors = FLOORS if self.floor is None and keep else ()
        with Progress(OWNER, meter.work(levels) * (1 + len(shares)) + len(floors), self.progress) as bar:
            for share in [*shares, 0.0]:
                # Groups at their floor have nothing left to measure.
                levels = {name: wanted for name, wanted in levels.items() if wanted}
                curves = dataclasses.replace(curves, rounds=(*curves.rounds, meter.round(widths, levels, bar)))
                if share:
                    widths = self._widths_at(structure, curves, grids, kind, share)
                    levels = {name: _levels(width, LATER_LEVELS) for name, width in widths.items()}
            joint = {}
            for floor in floors:  # losses of single cuts do not tell what narrow groups next to each other cost
                narrowed = dataclasses.replace(self, floor=floor)
                joint[floor] = meter.round(narrowed._widths_at(structure, curves, grids, kind, keep), {}, bar).loss
                bar.advance(1.0)
        few = f", all that the data hold ({meter.asked} were asked for)" if curves.images < meter.asked else ""
        logger.info("%s: measured on %d images%s, as %s", OWNER, curves.images, few, curves.unit)
        _warn_about(curves)
        return dataclasses.replace(self, curves=curves, floor=_best(joint, meter.information) if joint else self.floor)

    def _widths_at(
        self, structure: Structure, curves: LossCurves, grids: Mapping[str, WidthGrid], kind: str, share: float
    ) -> Widths:
        whole = None
        for state in self._states(structure, curves, grids, unit_costs(structure, kind)):
            cost = structure.cost(state)
            value = cost.params if kind == "params" else sum(state.values()) if kind == "amount" else cost.macs
            whole = whole or value
            if value <= share * whole:
                return state
        return state

    def _states(
        self, structure: Structure, curves: LossCurves, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> Iterable[Widths]:
        floor = FLOORS[0] if self.floor is None else self.floor
        shares = dict.fromkeys(coupled_groups(structure), max(floor, self.coupled_floor))
        floors = {
            name: max(grid.lowest, math.ceil(shares.get(name, floor) * (grid.original or grid.size)))
            for name, grid in grids.items()
        }
        return descend(curves, costs, grids, floors, self.depth)

    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return falling widths: each step loses the least information for the saved cost."""
        if not isinstance(self.curves, LossCurves):
            raise ConfigurationError(f"{OWNER} has nothing measured yet: call prepared(model, structure, data)")
        self.curves.check({name: grid.size for name, grid in grids.items()})
        return through(list(self._states(structure, self.curves, grids, costs)), grids)

    def expected_loss(self, widths: Mapping[str, int]) -> float:
        """Return the loss that the curves expect at some widths, with the penalty on depth."""
        assert isinstance(self.curves, LossCurves)
        whole = self.curves.rounds[0]
        narrower = sum(math.log(whole.widths[name] / width) for name, width in widths.items() if whole.matters(name))
        return self.curves.estimate(widths) + self.depth * narrower


def _best(joint: Mapping[float, float], information: float) -> float:
    """Return the floor whose cuts cost the least together, or the first if no floor keeps any information.

    Args:
        joint: Floor -> loss of all cuts at once.
        information: The loss of outputs without information about the images.
    """
    best = min(joint, key=joint.__getitem__)
    floor = best if joint[best] < information else FLOORS[0]
    listed = ", ".join(f"{loss:.4g} with at least {share:.1%} of each group" for share, loss in joint.items())
    logger.info(
        "%s: all cuts at once cost %s; uninformative outputs cost %.4g; the floor is %g",
        OWNER, listed, information, floor,
    )  # fmt: skip
    return floor


def _warn_about(curves: LossCurves) -> None:
    """Warn about groups on which the outputs do not depend for these images."""
    free = [name for name in curves.rounds[0].curves if not curves.rounds[0].matters(name)]
    if free:
        more = f" and {len(free) - 3} others" if len(free) > 3 else ""
        logger.warning(
            "%s: on these images the outputs do not depend on %s%s, so that they are cut first; freeze them if they "
            "matter elsewhere", OWNER, ", ".join(free[:3]), more,
        )  # fmt: skip


def _levels(width: int, shares: Sequence[float]) -> list[int]:
    """Return the widths at which a group of some width is measured, from the largest."""
    return sorted({level for share in shares if 0 < (level := int(share * width)) < width}, reverse=True)
