"""Make one pruning decision: from a traced model to the plan, without changing the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from infoprune.allocation import Allocation, Budget, LatencyShare, LossCurves, get_allocation, select
from infoprune.allocation.budget import KINDS, as_share, check_filters, is_absolute
from infoprune.allocation.patterns import MinWidth, check_min_width
from infoprune.allocation.rounding import AUTO, RoundTo, check_round_to
from infoprune.backends.grid import steps_in
from infoprune.criteria import Criterion, Scores, get_criterion
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from infoprune.allocation.solve import Measure
    from infoprune.backends import Backend
    from infoprune.cost import Cost
    from infoprune.structure import PruningPlan, Structure


@dataclass(frozen=True)
class Target:
    """How far to prune: what is left of one of ``macs``, ``params``, ``latency`` or the ``filters`` of every group.

    What is left is a share, 0.6 or ``"60%"``. ``macs`` and ``params`` may be numbers from 1,000 on, too:
    ``200e6`` MACs. ``backend`` is where the model will run: with ``round_to="auto"``, widths are multiples that pay
    there.

    Allocations that carry their own ratios (per layer, per stage) need none of the four.

    Raises:
        ConfigurationError: more than one is given, or one is out of range.
    """

    macs: float | str | None = None
    params: float | str | None = None
    filters: float | str | None = None
    round_to: RoundTo = AUTO
    min_width: MinWidth = 1
    latency: float | str | None = None
    backend: Backend | None = None

    def __post_init__(self) -> None:
        given = {k: v for k in (*KINDS, "filters") if (v := getattr(self, k)) is not None}
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(f'{k}={v}' for k, v in given.items())} clash: give one of them")
        for kind in (*KINDS, "filters"):
            object.__setattr__(self, kind, as_share(getattr(self, kind)))
        if self.filters is not None:
            check_filters(self.filters)
        check_round_to(self.round_to)
        check_min_width(self.min_width)
        if not self._is_absolute:
            _ = self.budget  # another

    @property
    def _is_absolute(self) -> bool:
        return any(is_absolute(kind, getattr(self, kind)) for kind in ("macs", "params"))

    @property
    def amount(self) -> float | None:
        """Return the share of the filters that goes, as allocations take it."""
        return None if self.filters is None else round(1 - float(self.filters), 12)

    @property
    def budget(self) -> Budget | None:
        """The budget, if there is one; of a number of MACs or parameters only after :meth:`relative_to`."""
        return next((Budget(kind, keep) for kind in KINDS if (keep := getattr(self, kind)) is not None), None)

    def relative_to(self, cost: Cost) -> Target:
        """Return this target with a number of MACs or parameters turned into a share of what the model costs.

        Args:
            cost: the unpruned model's cost.
        """
        numbers = {kind: value for kind in ("macs", "params") if is_absolute(kind, value := getattr(self, kind))}
        return replace(self, **{kind: min(1.0, value / getattr(cost, kind)) for kind, value in numbers.items()})

    def steps(
        self, model: nn.Module, structure: Structure, sizes: Mapping[str, int] | None
    ) -> RoundTo | Mapping[str, int]:
        """Return what widths are rounded to: ``round_to``, or for each group by name where a backend decides."""
        if self.backend is None or self.round_to != AUTO:
            return self.round_to
        device = next((parameter.device for parameter in model.parameters()), None)
        return steps_in(structure, self.backend, device, sizes)


@dataclass(frozen=True)
class Decision:
    """What a criterion and an allocation made of a model.

    Attributes:
        plan: what is removed.
        scores: group name -> (units,) scores.
        widths: group name -> units that stay.
        latency: with a latency budget, the share of the original's time that was measured at these widths.
        latency_error: how far that may be from the truth: half of its 95 % interval, relative to it.
        allocation: the allocation with what it measured.
    """

    plan: PruningPlan
    scores: Scores
    widths: Mapping[str, int] = field(default_factory=dict)
    latency: float | None = None
    allocation: Allocation | None = None
    latency_error: float | None = None

    @property
    def curves(self) -> LossCurves | None:
        """Return the loss curves of all groups, if the allocation measured them."""
        curves = getattr(self.allocation, "curves", None)
        return curves if isinstance(curves, LossCurves) else None


def share_of_time(share: float, error: float | None) -> str:
    """Say which share of the time is left, and how sure that is.

    Args:
        share: measured share of the time, in (0, 1].
        error: half of its 95 % interval, relative to it; None if unknown.

    Example:
        >>> share_of_time(0.6, 0.01)
        '60.0% of the time (give or take 0.6%)'
    """
    return f"{share:.1%} of the time" + (f" (give or take {error * share:.1%})" if error else "")


def decide(
    model: nn.Module,
    structure: Structure,
    target: Target,
    criterion: str | Mapping[str, Any] | Criterion = "l1",
    allocation: str | Mapping[str, Any] | Allocation = "auto",
    data: Iterable[Any] | None = None,
    *,
    fraction: float = 1.0,
    reference: Cost | None = None,
    sizes: Mapping[str, int] | None = None,
    scores: Scores | None = None,
    measure: Measure | None = None,
) -> Decision:
    """Score the filters, divide the budget among the groups, and choose the units to remove.

    Args:
        model: the model that ``structure`` was traced from.
        structure: its channel groups.
        target: how far to prune.
        criterion: how much each filter matters.
        allocation: how the groups share the cut.
        data: batches for criteria and allocations that need them.
        fraction: how much of the way to go now (gradual schedules).
        reference: the cost before the first event, of which a budget is a fraction.
        sizes: group name -> units before the first event.
        scores: scores that were made before (averaged over processes), instead of asking the criterion.
        measure: share of the original latency that widths take, for latency budgets.

    Raises:
        ConfigurationError, BudgetError: see :class:`Criterion` and :class:`Allocation`.
    """
    if scores is None:
        scores = get_criterion(criterion)(model, structure, data)
    target = target.relative_to(reference or structure.cost())
    kind, keep = goal(target, structure, fraction, reference, sizes)
    chosen = get_allocation(allocation)
    with chosen.named_in_errors("while it measured the model"):
        chosen = chosen.in_schedule(sizes).prepared(model, structure, data, scores=scores, kind=kind, keep=keep)
    widths = chosen.widths(
        structure,
        scores,
        target.budget,
        target.amount,
        target.steps(model, structure, sizes),
        target.min_width,
        fraction=fraction,
        reference=reference,
        sizes=sizes,
        measure=measure,
    )
    latency, error = None, None
    if isinstance(measure, LatencyShare):
        latency, error = measure.measured(widths), measure.error(widths)
    return Decision(select(structure, scores, widths), scores, widths, latency, chosen, error)


def goal(
    target: Target,
    structure: Structure,
    fraction: float = 1.0,
    reference: Cost | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[str, float]:
    """Return what is to shrink, a kind of budget or ``"amount"``, and the share of what it is now that stays.

    Args:
        target: how far to prune.
        structure: the channel groups as they are now.
        fraction: how much of the way to go now.
        reference: the cost before the first event.
        sizes: group name -> units before the first event.
    """
    now = structure.cost()
    budget = target.relative_to(reference or now).budget
    if budget is None:
        units = {group.name: group.size for group in structure.prunable}
        whole = sum((sizes or units).values())
        return "amount", (1 - fraction * (target.amount or 0.0)) * whole / max(sum(units.values()), 1)
    of = "params" if budget.kind == "params" else "macs"  # time goes with the MACs, roughly
    whole = getattr(reference or now, of)
    return budget.kind, (1 - fraction * (1 - budget.keep)) * whole / max(getattr(now, of), 1)
