"""`prune`, `save`, `load`: the whole of infoprune for plain PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from infoprune import recalibration
from infoprune.allocation import Allocation, LatencyShare, LossCurves, get_allocation
from infoprune.allocation.rounding import RoundTo
from infoprune.allocation.solve import Measure
from infoprune.cost import Cost
from infoprune.criteria import Criterion, Scores
from infoprune.criteria.calibration import as_batches
from infoprune.decide import Decision, Target, decide
from infoprune.errors import CheckpointError, ConfigurationError, PlanError
from infoprune.files import written_whole
from infoprune.recalibration import check_norms
from infoprune.registry import check_count
from infoprune.snapshot import snapshot
from infoprune.structure import PruningPlan, Structure, plan_of, shrink
from infoprune.structure.notebook import html_table
from infoprune.structure.plan import check_belongs
from infoprune.structure.tensors import owned_tensors
from infoprune.structure.trace import MAX_DRY_RUNS, TraceSession, labelled, rehearsed, resolve_conflicts
from infoprune.structure.tracing.tracer import Inputs
from infoprune.structure.validation.conflict import Conflict
from infoprune.structure.validation.dry_run import dry_run

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

Model = TypeVar("Model", bound=nn.Module)

FORMAT = 1


@dataclass(frozen=True, repr=False)
class PruneResult:
    """What :func:`prune` did.

    Attributes:
        plan: what was removed, in coordinates of the model before.
        before: cost before.
        after: cost after.
        structure: the channel groups of the model before. Where ``plan`` alone was rehearsed, groups that `trace` would
            freeze after a trial cut may show as prunable.
        scores: group name -> (units,) scores that decided.
        latency: with a latency budget, the share of the time before that was measured at the widths chosen.
        curves: what cutting each group costs, if the allocation measured it.
    """

    plan: PruningPlan
    before: Cost
    after: Cost
    structure: Structure
    scores: Scores
    latency: float | None = None
    curves: LossCurves | None = None

    def __str__(self) -> str:
        macs, params = self.after.ratio(self.before)
        return (
            f"{self.before.macs:,} -> {self.after.macs:,} MACs ({macs:.1%}), "
            f"{self.before.params:,} -> {self.after.params:,} parameters ({params:.1%})"
        )

    def __repr__(self) -> str:
        return f"PruneResult({self})"

    def _repr_html_(self) -> str:
        before, after = self.structure.layer_costs(), self.structure.layer_costs(self.plan)
        rows = [
            [name, *(f"{old:,} → {new:,}" for old, new in zip(astuple(cost), astuple(after[name]), strict=True))]
            for name, cost in before.items()
        ]
        return html_table(str(self), ["layer", "MACs", "parameters"], rows)


def prune(
    model: nn.Module,
    example_inputs: Inputs,
    criterion: str | Mapping[str, Any] | Criterion = "capacity_independence",
    *,
    amount: float | None = None,
    macs: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    allocation: str | Mapping[str, Any] | Allocation = "auto",
    round_to: RoundTo = "auto",
    min_width: int = 1,
    frozen: Sequence[str] = (),
    data: Iterable[Any] | LightningDataModule | None = None,
    recalibrate: int = 0,
    optimizers: Optimizer | Sequence[Optimizer] = (),
) -> PruneResult:
    """Shrink a model in place, in one go.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of its ``forward``.
        criterion: how much each filter matters: a name, ``{"name": ..., options}`` or a :class:`Criterion`.
        amount: share of the filters to remove from every group, in [0, 1).
        macs: share of the multiply-accumulates to keep, in (0, 1] or as ``"60%"``, or their number, as ``200e6``.
        params: share of the parameters to keep, in (0, 1] or as ``"60%"``, or their number.
        latency: share of the time of a forward pass on ``example_inputs`` to keep, in (0, 1], measured on the device
            where the model is; what is reached is measured too, see ``PruneResult.latency``.
        allocation: how the groups share the cut. "auto" measures what cutting each group costs where ``data`` are given
            (:class:`~infoprune.allocation.InformationLoss`); without, residual streams give way last
            (:class:`~infoprune.allocation.CoupledLast`). An amount is removed from every group alike.
        round_to: widths are multiples of this; "auto": of 4, 8 or 16 in layers of at least 16, 64 or 128 filters, since
            other widths are slow in most runtimes.
        min_width: the fewest units a group keeps.
        frozen: patterns of layers whose filters all stay.
        data: batches of training images, for criteria that need them and for ``recalibrate``; with both, something
            that can be gone through twice. Or a LightningDataModule after ``setup("fit")``, for its training batches.
        recalibrate: so many batches of ``data`` measure batch norm's statistics anew after the cut; show them as in
            training, augmentation included. 0: not. See :func:`infoprune.recalibrate`.
        optimizers: one or several optimizers, whose parameters and state follow the model.

    Returns:
        The plan, and the cost before and after.

    Raises:
        ConfigurationError: an option that does not exist or cannot work.
        TraceError: the model's forward fails on the example inputs.
        BudgetError: the frozen layers alone cost more than the budget.
        SurgeryError: an optimizer's state cannot be cut. After any error the model is as it was.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(net, torch.zeros(1, 3, 8, 8), criterion="l1", amount=0.5)
        >>> net[0].out_channels, result.plan.shape_after("2.weight")
        (4, (4, 4, 3, 3))
    """
    target = Target(macs, params, amount, round_to, min_width, latency)
    batches: Iterable[Any] | None = as_batches(data)
    if recalibrate:
        _check_recalibration(model, batches, recalibrate)
    session, structure = labelled(model, example_inputs, frozen)
    if data is not None or latency is not None or not structure.cuts_alike:
        structure = rehearsed(session, structure)  # else deciding is cheap, and the plan itself the best of trial cuts
    decide_on = partial(decide, model, target=target, criterion=criterion, data=batches)
    measure = None if latency is None else partial(LatencyShare, model, example_inputs=example_inputs)
    structure, decision = _decided(session, structure, decide_on, get_allocation(allocation), measure)
    before, after = structure.cost(), structure.cost_of(decision.plan)
    statistics = _statistics_after(model, decision.plan, batches, recalibrate) if recalibrate else {}
    shrink(model, decision.plan, optimizers)
    for name, norm in statistics.items():
        model.get_submodule(name).load_state_dict(norm.state_dict())
    return PruneResult(decision.plan, before, after, structure, decision.scores, decision.latency, decision.curves)


def _decided(
    session: TraceSession,
    structure: Structure,
    decide_on: Callable[..., Decision],
    allocation: Allocation,
    measure: Callable[[Structure], Measure] | None,
) -> tuple[Structure, Decision]:
    """Decide until the model's code follows the plan; what stands in its way stays."""
    scores: Scores | None = None
    blamed: list[Conflict] = []
    for _ in range(MAX_DRY_RUNS):
        decision = decide_on(structure, allocation=allocation, scores=scores, measure=measure and measure(structure))
        blamed = dry_run(session, structure, decision.plan)
        if not blamed:
            return structure, decision
        structure = resolve_conflicts(session, structure, decision.plan, blamed)
        allocation = decision.allocation or allocation  # what it measured still holds
        scores = {g.name: decision.scores[g.name] for g in structure.prunable if g.name in decision.scores}
    raise PlanError(f"no plan was found that the model's code follows: a channel {blamed[0].reason}; freeze that layer")


def _check_recalibration(model: nn.Module, data: Iterable[Any] | None, batches: int) -> None:
    check_count("prune", "recalibrate", batches, 0)
    check_norms(model)
    if data is None:
        raise ConfigurationError(f"recalibrate={batches} takes batches from data: pass batches of training images")
    if iter(data) is data:
        raise ConfigurationError(
            f"recalibrate={batches} goes through data after the criterion has: pass a list or a loader, not an iterator"
        )


def _statistics_after(
    model: nn.Module, plan: PruningPlan, data: Iterable[Any] | None, batches: int
) -> dict[str, nn.Module]:
    """The recalibrated batch norms of a copy that is cut, so that the model is as it was if anything fails."""
    trial = snapshot(model)
    shrink(trial, plan)
    recalibration.recalibrate(trial, data or (), batches)
    return dict(check_norms(trial))


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned model: its weights, and the plan that leads to its shape. No pickled code.

    Raises:
        CheckpointError: the file cannot be written.
    """
    data = {"infoprune": FORMAT, "plan": plan_of(model).to_dict(), "state_dict": model.state_dict()}
    try:
        with written_whole(path) as scratch:
            torch.save(data, scratch)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load(path: str | os.PathLike[str], model: Model) -> Model:
    """Read what :func:`save` wrote into ``model``, the unpruned architecture, which is shrunk in place.

    Raises:
        CheckpointError: the file is missing, truncated or something else, or belongs to another architecture (names
            the first layer that differs). The model is then as it was.
    """
    plan, state = _read(path)
    if not plan_of(model).is_empty:
        raise CheckpointError(f"{path} is to be loaded into a model that is pruned already: give one as it was built")
    try:
        check_belongs(plan, {name: tuple(entry.tensor.shape) for name, entry in owned_tensors(model).items()})
        _check_weights(path, model, plan, state)
        shrink(model, plan)
    except PlanError as error:
        raise CheckpointError(f"{path} belongs to another architecture: {error}") from error
    model.load_state_dict(state)
    return model


def _read(path: str | os.PathLike[str]) -> tuple[PruningPlan, dict[str, Any]]:
    try:
        data = torch.load(os.fspath(path), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read {path}, it is missing, truncated or not a checkpoint: {reason}") from error
    if not isinstance(data, dict) or data.get("infoprune") != FORMAT or not {"plan", "state_dict"} <= set(data):
        raise CheckpointError(f"{path} was not written by infoprune.save (format {FORMAT})")
    state = data["state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: its 'state_dict' is a {type(state).__name__}")
    try:
        return PruningPlan.from_dict(data["plan"]), state
    except PlanError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _check_weights(path: Any, model: nn.Module, plan: PruningPlan, state: Mapping[str, Any]) -> None:
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(f"{path} belongs to another architecture: it has no {name}")
        if not isinstance(tensor, torch.Tensor):
            continue
        wanted = plan.shape_after(name) if name in plan.shapes else tuple(tensor.shape)
        if not isinstance(state[name], torch.Tensor):
            raise CheckpointError(f"{path} is damaged: {name} is a {type(state[name]).__name__}, not a tensor")
        if tuple(state[name].shape) != wanted:
            raise CheckpointError(
                f"{path} belongs to another architecture: {name} has shape {tuple(state[name].shape)} in the file, "
                f"the model needs {wanted}"
            )
    extra = next((name for name in state if name not in own), None)
    if extra is not None:
        raise CheckpointError(f"{path} belongs to another architecture: the model has no {extra}")
