"""`Allocation`: the base of all allocations, from the requested cut to the width of every group."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from infoprune.allocation.attempt import Attempt, finest_needed
from infoprune.allocation.budget import Budget, UnitCosts, check_amount, cost_share, unit_costs
from infoprune.allocation.checks import as_widths
from infoprune.allocation.grid import WidthGrid
from infoprune.allocation.latency import CLOSE, SLACK, LatencyShare
from infoprune.allocation.patterns import MinWidth, least_widths
from infoprune.allocation.rounding import AUTO, RoundTo, halved, steps
from infoprune.allocation.solve import CLOSE_IN_TIME, TOLERANCE, Measure, Widths, WidthsAt, solve
from infoprune.errors import BudgetError, ConfigurationError
from infoprune.part import Part
from infoprune.registry import Registry

if TYPE_CHECKING:
    from infoprune.cost import Cost
    from infoprune.criteria import Scores
    from infoprune.structure import ChannelGroup, Structure


@dataclass(kw_only=True)
class Allocation(Part):
    """Decide how many units every prunable group keeps.

    A subclass decides which groups are cut first by giving widths for every sparsity. The sparsity
    follows from a budget, from an amount, or from the subclass's own ratios.
    """

    kind: ClassVar[str] = "allocation"
    needs_data: ClassVar[bool] = False

    @property
    def single_units(self) -> bool:
        """Return whether the solver may widen single groups by single units to spend the rest of a budget."""
        return True

    def in_schedule(self, sizes: Mapping[str, int] | None) -> Allocation:
        """Return this allocation for a model that earlier events have cut; itself where that makes no difference.

        Args:
            sizes: Group name -> units before the first event; None before any.
        """
        return self

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
        """Return this allocation with the measurements that it needs of the model, or itself if it needs none.

        Args:
            model: The model that ``structure`` was traced from. It is not changed.
            structure: Its channel groups.
            data: Batches of training images, for allocations with ``needs_data``.
            scores: Group name -> (units,) scores: which units of a group go first.
            kind: Unit of the budget: ``"macs"``, ``"params"``, ``"latency"``, or ``"amount"`` for a share of units.
            keep: Share to keep; 0 prepares for any budget.
        """
        return self

    @abstractmethod
    def widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return a function from a sparsity in [0, 1] to the widths of the groups in ``grids``.

        Sparsity 0 leaves all units and 1 the fewest; in between, widths only shrink as the sparsity grows.

        Args:
            structure: The channel groups as they are now.
            scores: Group name -> (units,) scores.
            grids: Group name -> the widths that it may take.
            costs: From widths to the cost of one unit of each group at these widths, in the unit of the budget.
        """

    def checked_widths_at(
        self, structure: Structure, scores: Scores | None, grids: Mapping[str, WidthGrid], costs: UnitCosts
    ) -> WidthsAt:
        """Return :meth:`widths_at`, with every result of it checked.

        Args:
            structure: See :meth:`widths_at`, as the next three.
            scores: Group name -> (units,) scores.
            grids: Group name -> the widths that it may take.
            costs: From widths to the cost of one unit of each group at these widths.

        Raises:
            ConfigurationError: an exception in the allocation's code, or invalid widths, see :func:`as_widths`.
        """
        with self.named_in_errors("in widths_at"):
            widths_at = self.widths_at(structure, scores, grids, costs)
        if not callable(widths_at):
            raise ConfigurationError(
                f"{self.label}: widths_at returns {type(widths_at).__name__}; return a function from a sparsity in "
                "[0, 1] to the width of each group"
            )

        def checked(sparsity: float) -> Widths:
            with self.named_in_errors(f"at a sparsity of {sparsity:g}"):
                widths = widths_at(sparsity)
            return as_widths(self.label, widths, grids)

        whole, fewest = checked(0.0), checked(1.0)
        for name in grids:
            if fewest[name] > whole[name]:
                raise ConfigurationError(
                    f"{self.label} gives group {name!r} {whole[name]} units at sparsity 0 and {fewest[name]} at "
                    "sparsity 1; widths must shrink as the sparsity grows"
                )
        return checked

    def expected_loss(self, widths: Mapping[str, int]) -> float:
        """Return the expected loss at some widths, in any unit, if the allocation has measured it; else 0.

        Automatic rounding becomes finer if it adds too much to this loss.

        Args:
            widths: Group name -> units that it keeps.
        """
        return 0.0

    def without_budget(
        self,
        structure: Structure,
        scores: Scores | None,
        grids: Mapping[str, WidthGrid],
        amount: float | None,
        fraction: float,
    ) -> Widths:
        """Return widths without a budget: the groups together lose ``fraction`` x ``amount`` of their units.

        Args:
            structure: The channel groups.
            scores: Group name -> (units,) scores; None where no criterion has run.
            grids: Group name -> the widths that the group may take.
            amount: Share of the units to remove in the end, in [0, 1).
            fraction: Share of the whole cut to reach, in (0, 1].
        """
        amount = self.need_amount(amount)
        widths_at = self.checked_widths_at(structure, scores, grids, unit_costs(structure, "amount"))
        whole = sum(grid.original or grid.size for grid in grids.values())
        fewest = sum(widths_at(1.0).values()) / whole
        target = 1 - fraction * amount
        if fewest > target:
            raise BudgetError(
                f"{target:.4g} of the filters are to stay, but the fewest that {self.label} and min_width leave "
                f"are {fewest:.4g}: give filters={fewest:.4g} or more"
            )
        return solve(widths_at, grids, lambda widths: sum(widths.values()) / whole, target)

    def need_amount(self, amount: float | None) -> float:
        """Return the amount; raise a ConfigurationError where neither it nor a budget was given."""
        if amount is None:
            raise ConfigurationError(f"{self.label} needs a budget: give macs=0.5, params, latency or filters")
        return amount

    def widths(
        self,
        structure: Structure,
        scores: Scores | None = None,
        budget: Budget | None = None,
        amount: float | None = None,
        round_to: RoundTo | Mapping[str, int] = 1,
        min_width: MinWidth = 1,
        *,
        fraction: float = 1.0,
        reference: Cost | None = None,
        sizes: Mapping[str, int] | None = None,
        measure: Measure | None = None,
    ) -> Widths:
        """Return how many units each prunable group keeps.

        Args:
            structure: The structure as it is now.
            scores: Group name -> (units,) scores. Groups without scores keep all units; None means all groups, for
                allocations that do not use scores.
            budget: The cost that the model may have afterwards. The result costs at most that, and at least 99 % of
                it; a warning is given if the widths do not allow that.
            amount: Instead of a budget: the share of units to remove, in [0, 1).
            round_to: Widths are multiples of it, unless a group stays whole. "auto": the multiple follows from the
                layers' widths; it is halved while a tenth of a budget of MACs or parameters stays unspent, or while
                rounding adds a twentieth to the measured loss. A mapping: one multiple per group, by name. See
                `infoprune.allocation.rounding`.
            min_width: Fewest units that a group keeps; a mapping: by patterns of layers, as numbers or shares below 1.
            fraction: Share of the whole cut to reach now (gradual schedules): a budget becomes
                1 - fraction x (1 - keep).
            reference: The cost that the budget is a fraction of; the cost of ``structure`` by default. Gradual pruning
                passes the cost before the first event.
            sizes: Group name -> units before the first event, which amounts and ratios refer to.
            measure: Function from widths to their share of the original cost. By default counted for ``macs`` and
                ``params``; required for ``latency``.

        Returns:
            Group name -> units to keep, for every prunable group that has scores.

        Raises:
            ConfigurationError: options that clash or are out of range, or nothing to prune.
            BudgetError: the budget is below the cost of the frozen layers and the fewest units; the message gives
                the lowest possible budget.
        """
        if budget is not None and amount is not None:
            raise ConfigurationError(
                f"both a {budget.kind} budget of {budget.keep:g} and an amount of {amount:g}: give one"
            )
        if amount is not None:
            check_amount(amount)
        if not 0 < fraction <= 1:
            raise ConfigurationError(f"fraction must be in (0, 1], got {fraction!r}")
        if budget is not None and measure is None:
            if budget.kind == "latency":
                raise ConfigurationError(
                    "a latency budget needs a measure: pass measure=LatencyShare(model, structure, inputs)"
                )
            measure = cost_share(structure, budget.kind, reference)

        least = least_widths(structure, min_width, sizes)

        def attempt(step: Mapping[str, int]) -> Attempt:
            grids = {
                group.name: WidthGrid(group.size, step[group.name], least[group.name], (sizes or {}).get(group.name))
                for group in prunable_groups(structure, scores)
            }
            if budget is None:
                widths = self.without_budget(structure, scores, grids, amount, fraction)
                return _by_amount(grids, as_widths(self.label, widths, grids), amount)
            assert measure is not None
            widths_at = self.checked_widths_at(structure, scores, grids, unit_costs(structure, budget.kind, measure))
            made = within_budget(structure, budget, fraction, widths_at, grids, measure, self.single_units)
            return made._replace(loss=self.expected_loss(made.widths))

        chosen_for_the_user = round_to == AUTO or isinstance(round_to, Mapping)
        finer = halved if chosen_for_the_user and not isinstance(measure, LatencyShare) else None
        made = finest_needed(steps(structure, round_to, sizes), attempt, finer)
        if made.unmet:
            grid = "the multiples that pay in the backend" if isinstance(round_to, Mapping) else f"round_to={round_to}"
            warnings.warn(f"{made.unmet} with {grid} and min_width={min_width}; lower them", stacklevel=2)
        return made.widths


ALLOCATIONS: Registry[Allocation] = Registry(Allocation)  # type: ignore[type-abstract]


def get_allocation(spec: str | Mapping[str, Any] | Allocation) -> Allocation:
    """Return the allocation that ``spec`` names.

    Args:
        spec: ``"uniform"``, ``{"name": "per_layer", "ratios": {...}}``, or an allocation, returned as it is.

    Raises:
        ConfigurationError: unknown allocation or option; the message gives the nearest known one.
    """
    return ALLOCATIONS.build(spec)


def prunable_groups(structure: Structure, scores: Scores | None) -> list[ChannelGroup]:
    """Return the groups that widths are decided for, in forward order.

    Args:
        structure: The channel groups.
        scores: Group name -> scores; groups without any are left out. None takes all prunable groups.
    """
    groups = [group for group in structure.prunable if scores is None or group.name in scores]
    if not groups and structure.prunable:
        raise ConfigurationError(
            f"nothing to prune: the criterion gives no scores for any of the {len(structure.prunable)} prunable groups "
            f"({', '.join(group.name for group in structure.prunable[:3])}, ...)"
        )
    if not groups:
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in structure.groups[:3])
        raise ConfigurationError(
            f"nothing to prune: all {len(structure.groups)} channel groups are frozen "
            f"({reasons or 'the model has none'})"
        )
    return groups


def _by_amount(grids: Mapping[str, WidthGrid], widths: Widths, amount: float | None) -> Attempt:
    idle = amount and all(widths[name] == (grid.original or grid.size) for name, grid in grids.items())
    return Attempt(widths, 1.0, f"an amount of {amount:.4g} removes nothing") if idle else Attempt(widths)


def within_budget(
    structure: Structure,
    budget: Budget,
    fraction: float,
    widths_at: WidthsAt,
    grids: Mapping[str, WidthGrid],
    measure: Measure,
    single_units: bool = True,
) -> Attempt:
    """Return the widths among ``widths_at`` that spend the budget; see :meth:`Allocation.widths`."""
    target = 1 - fraction * (1 - budget.keep)
    narrowest, cost = widths_at(1.0), measure
    if isinstance(measure, LatencyShare):
        widths = measure.within(
            target, lambda share: solve(widths_at, grids, measure, share, CLOSE_IN_TIME, single_units)
        )
        cost = measure.measured
    else:
        fits = measure(narrowest) <= target
        widths = solve(widths_at, grids, measure, target, single_units=single_units) if fits else narrowest
    reached, spared = cost(widths), CLOSE if budget.kind == "latency" else TOLERANCE
    if reached > target + SLACK:
        raise BudgetError(_too_small(structure, budget, target, reached, narrowest))
    if reached >= (1 - spared) * target or all(widths[name] == grid.size for name, grid in grids.items()):
        return Attempt(widths)
    unmet = f"the {budget.kind} budget of {target:.4g} is met at {reached:.4g}, the nearest from below that was found"
    return Attempt(widths, 1 - reached / target, unmet)


def _too_small(structure: Structure, budget: Budget, target: float, floor: float, widths: Widths) -> str:
    fewest = max(widths.values())
    frozen = [group for group in structure.groups if group.frozen]
    names = ", ".join(group.name for group in frozen[:3])
    held = f"; frozen: {names}{' and others' if len(frozen) > 3 else ''}" if frozen else ""
    costs = structure.layer_costs()
    of_groups = [sum(costs[layer.name].macs for layer, _ in structure.producers(group)) for group in frozen]
    if any(of_groups):
        dearest = frozen[of_groups.index(max(of_groups))]
        held += f", most of it {dearest.name}: {dearest.reason}"
    advice = f"ask for at least {floor:.4g}, or lower" if floor < 1 else "no cut makes the model cheaper: lower"
    return (
        f"a {budget.kind} budget of {target:.4g} is below the floor of {floor:.4g} that stays when every prunable "
        f"group is cut to its fewest units (at most {fewest}){held}; {advice} round_to and min_width, or freeze less"
    )
