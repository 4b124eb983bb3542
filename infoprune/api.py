"""`prune`, `save`, `load`: pruning for plain PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import nn
from torch.optim import Optimizer

from infoprune import recalibration
from infoprune.allocation import Allocation, LatencyShare, LossCurves, get_allocation
from infoprune.allocation.budget import KINDS
from infoprune.allocation.patterns import MinWidth
from infoprune.allocation.rounding import RoundTo
from infoprune.allocation.solve import Measure
from infoprune.backends import get_backend
from infoprune.backends.backend import BackendSpec
from infoprune.calibration import as_batches
from infoprune.cost import Cost
from infoprune.criteria import Criterion, Scores
from infoprune.decide import Decision, Target, decide, share_of_time
from infoprune.deprecated import filters_to_keep, renamed
from infoprune.errors import ConfigurationError, DataError
from infoprune.inputs import Inputs
from infoprune.network_batches import NetworkBatches
from infoprune.recalibration import check_norms, tracked_norms
from infoprune.reconstruction import few_examples, fit_readers
from infoprune.registry import check_count
from infoprune.snapshot import snapshot
from infoprune.structure import PruningPlan, Structure, shrink
from infoprune.structure.collector import collector_paused
from infoprune.structure.notebook import html_table
from infoprune.structure.surgery.shrink import each_once
from infoprune.structure.surgery.transaction import Transaction
from infoprune.structure.tensors import check_model
from infoprune.structure.trace import traced_model
from infoprune.structure.validation.traced_model import TracedModel
from infoprune.structure.verify import check_exact
from infoprune.values import check_values

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

    from infoprune.within_drop import Trial

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

FORMAT = 1


@dataclass(frozen=True, repr=False)
class PruneResult:
    """The result of :func:`prune`.

    Attributes:
        plan: what was removed, in coordinates of the model before.
        before: cost before.
        after: cost after.
        structure: the channel groups of the model before, as `trace` finds them.
        scores: group name -> (units,) scores used for the decision.
        latency: with a latency budget, the measured time at the chosen widths, as a share of the time before.
        curves: the loss of cutting each group, if the allocation measured it.
        drop: with ``max_drop``, the measured drop of quality and its certainty.
        latency_error: the uncertainty of ``latency``: half of its 95 % interval, relative to it.
    """

    plan: PruningPlan
    before: Cost
    after: Cost
    structure: Structure
    scores: Scores
    latency: float | None = None
    curves: LossCurves | None = None
    drop: Trial | None = None
    latency_error: float | None = None

    def __str__(self) -> str:
        macs, params = self.after.ratio(self.before)
        line = (
            f"{self.before.macs:,} -> {self.after.macs:,} MACs ({macs:.1%}), "
            f"{self.before.params:,} -> {self.after.params:,} parameters ({params:.1%})"
        )
        return line if self.latency is None else f"{line}, {share_of_time(self.latency, self.latency_error)}"

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
    criterion: str | Mapping[str, Any] | Criterion = "l1",
    *,
    filters: float | str | None = None,
    macs: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    max_drop: float | None = None,
    backend: BackendSpec | None = None,
    allocation: str | Mapping[str, Any] | Allocation = "auto",
    round_to: RoundTo = "auto",
    min_width: MinWidth = 1,
    frozen: Sequence[str | nn.Module] = (),
    data: Iterable[Any] | LightningDataModule | None = None,
    validation: Iterable[Any] | Callable[[nn.Module], float] | None = None,
    recalibration_batches: int = 0,
    reconstruction_batches: int | Literal["auto"] = 0,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    verify: bool = True,
    amount: float | None = None,
    recalibrate: int | None = None,
) -> PruneResult:
    """Shrink a model in place, in one step.

    Args:
        model: any module.
        example_inputs: a tensor (or a list, such as a detector's images), a tuple of positional or a dict of keyword
            arguments of its ``forward``; several of these as :class:`infoprune.Examples`.
        criterion: how much each filter matters: a name, ``{"name": ..., options}`` or a :class:`Criterion`.
        filters: share of the filters to keep in every group, in (0, 1] or as ``"60%"``.
        macs: share of the multiply-accumulates to keep, in (0, 1] or as ``"60%"``, or their number, as ``200e6``.
        params: share of the parameters to keep, in (0, 1] or as ``"60%"``, or their number.
        latency: share of the time of a forward pass on ``example_inputs`` to keep, in (0, 1], measured in ``backend``;
            the reached share is measured, see ``PruneResult.latency``.
        max_drop: instead of a budget: keep as few multiply-accumulates as a drop of quality allows, in percentage
            points of accuracy or in the unit of ``validation``. Several cuts are tried, each with batch norm measured
            again; ``PruneResult.drop`` gives the certainty, see :func:`infoprune.find_macs`. Training reduces the drop.
        backend: where the model will run: ``"eager"`` (the default for ``latency``), ``"onnxruntime"``, or another; see
            `infoprune.latency`. With ``round_to="auto"``, widths are then multiples measured to be fast there.
        allocation: how the cut is divided among the groups. "auto" measures the loss of cutting each group if ``data``
            is given (:class:`~infoprune.allocation.InformationLoss`); otherwise residual streams are cut last
            (:class:`~infoprune.allocation.CoupledLast`). With ``filters``, every group keeps the same share.
        round_to: widths are multiples of this; "auto": of 4, 8 or 16 in layers of at least 16, 64 or 128 filters, since
            other widths are slow in most runtimes.
        min_width: the fewest units a group keeps; by layer, ``{"layer1.*": 8, "*": 0.25}``, as a number or a
            share of the units.
        frozen: layers, or patterns of their names, whose filters all stay.
        data: batches of training images, for criteria that need them and for ``recalibration_batches``; for both,
            an object that can be iterated twice. Batches may be tuples, mappings or nested: the parts that resemble
            ``example_inputs`` are the network's inputs, the rest are targets. Or a LightningDataModule after
            ``setup("fit")``.
        validation: for ``max_drop``: batches of other images with labels, or a function of a model that returns its
            quality, higher is better.
        recalibration_batches: number of batches of ``data`` on which batch norm's statistics are measured again after
            the cut; augment them as in training. 0: none, but 16 with ``max_drop``. See
            :func:`infoprune.recalibrate`.
        reconstruction_batches: number of batches of ``data`` on which the layers that read removed channels are fitted
            to their former outputs, by least squares, and batch norm's statistics are measured again. "auto": the first
            640 examples, or as many as hold ten million numbers; if these are too few, the kept weights do not change
            and the log says so. 0: no fit. See :func:`infoprune.reconstruct`.
        optimizers: one or several optimizers, whose parameters and state are cut with the model.
        verify: run the example inputs through the masked model and the shrunk model, and cut only if their outputs
            are the same; see :func:`infoprune.verify`. Takes three to eight forward passes.
        amount: the share of the filters to remove, the predecessor of ``filters``; deprecated.
        recalibrate: the old name of ``recalibration_batches``; deprecated.

    Returns:
        The plan, and the cost before and after.

    Raises:
        ConfigurationError: an option that does not exist or cannot work.
        TraceError: the model's forward fails on the example inputs.
        BudgetError: the frozen layers alone cost more than the budget, or no cut stays within ``max_drop``.
        VerificationError: the cut would change the outputs of the model; names the layer where the difference starts.
        SurgeryError: an optimizer's state cannot be cut. After any error the model is unchanged.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(net, torch.zeros(1, 3, 8, 8), criterion="l1", filters=0.5)
        >>> net[0].out_channels, result.plan.shape_after("2.weight")
        (4, (4, 4, 3, 3))
    """
    filters = filters_to_keep("prune", filters, amount)
    count = renamed("prune", "recalibration_batches", recalibration_batches, "recalibrate", recalibrate)
    target = Target(
        macs, params, filters, round_to, min_width, latency, None if backend is None else get_backend(backend)
    )
    if max_drop is not None:
        return _within_drop(
            model, example_inputs, max_drop, target, data, validation, optimizers, criterion=criterion, backend=backend,
            allocation=allocation, frozen=frozen, recalibration_batches=count, verify=verify,
            reconstruction_batches=reconstruction_batches,
        )  # fmt: skip
    if validation is not None:
        raise ConfigurationError("prune uses validation only with max_drop: give max_drop, or leave validation out")
    check_count("prune", "recalibration_batches", count, 0)  # which knows no "auto"
    _check_batches("recalibration_batches", count, as_batches(data))
    _check_batches("reconstruction_batches", reconstruction_batches, as_batches(data))
    check_model(model)
    check_values(model, example_inputs if verify else (), runs=data is not None)
    with collector_paused(data is None and latency is None and not verify):  # the model runs on shapes alone
        return _prune(
            model, example_inputs, traced_model(model, example_inputs, frozen), criterion, target,
            get_allocation(allocation), data, count, reconstruction_batches, each_once(optimizers), verify,
        )  # fmt: skip


def _prune(
    model: nn.Module,
    example_inputs: Inputs,
    traced: TracedModel,
    criterion: str | Mapping[str, Any] | Criterion,
    target: Target,
    allocation: Allocation,
    data: Iterable[Any] | LightningDataModule | None,
    recalibrated: int,
    reconstructed: int | Literal["auto"],
    optimizers: Sequence[Optimizer],
    verify: bool,
) -> PruneResult:
    """Shrink a model that was traced: decide, prove, cut."""
    if recalibrated:
        check_norms(model)
    batches = None if data is None else NetworkBatches(as_batches(data), example_inputs)
    if data is not None or target.latency is not None or not traced.structure.cuts_alike:
        traced.validate()  # else deciding is cheap, and the plan itself is the best probe plan
    measure = (
        None
        if target.latency is None
        else partial(LatencyShare, model, example_inputs=example_inputs, backend=target.backend or "eager")
    )
    decide_on = partial(decide, model, target=target, criterion=criterion, data=batches)
    decision = traced.settle(_Decider(decide_on, allocation, measure))
    structure = traced.structure
    if verify:
        check_exact(model, decision.plan, example_inputs)
    before, after = structure.cost(), structure.cost_of(decision.plan)
    fitted = _fitted(model, decision.plan, batches, recalibrated, reconstructed)
    with collector_paused(), Transaction([model], optimizers) as transaction:
        for name in fitted:  # which are written in place
            transaction.keep_values(model.get_submodule(name))
        shrink(model, decision.plan, optimizers, transaction=transaction)
        for name, layer in fitted.items():
            model.get_submodule(name).load_state_dict(layer.state_dict())
    return PruneResult(
        decision.plan, before, after, structure, decision.scores, decision.latency, decision.curves,
        latency_error=decision.latency_error,
    )  # fmt: skip


def _within_drop(
    model: nn.Module,
    example_inputs: Inputs,
    max_drop: float,
    target: Target,
    data: Iterable[Any] | LightningDataModule | None,
    validation: Iterable[Any] | Callable[[nn.Module], float] | None,
    optimizers: Optimizer | Sequence[Optimizer],
    **options: Any,
) -> PruneResult:
    from infoprune.within_drop import prune_within  # which prunes copies

    given = next((kind for kind in (*KINDS, "filters") if getattr(target, kind) is not None), None)
    if given is not None:
        raise ConfigurationError(f"max_drop={max_drop} and {given}={getattr(target, given)} clash: give one of them")
    options |= {"round_to": target.round_to, "min_width": target.min_width}
    return prune_within(model, example_inputs, max_drop, data, validation, optimizers, **options)


class _Decider:
    """Decide on a structure; later calls reuse the scores and the allocation's measurements."""

    def __init__(
        self,
        decide_on: Callable[..., Decision],
        allocation: Allocation,
        measure: Callable[[Structure], Measure] | None,
    ) -> None:
        self._decide_on = decide_on
        self._allocation = allocation
        self._measure = measure
        self._scores: Scores | None = None

    def __call__(self, structure: Structure) -> Decision:
        scores = self._scores
        if scores is not None:
            same = all(len(scores.get(group.name, ())) == group.size for group in structure.prunable)
            scores = {group.name: scores[group.name] for group in structure.prunable} if same else None
        measure = self._measure and self._measure(structure)
        decision = self._decide_on(structure, allocation=self._allocation, scores=scores, measure=measure)
        self._allocation = decision.allocation or self._allocation
        self._scores = decision.scores
        return decision


def _check_batches(option: str, count: int | Literal["auto"], data: Iterable[Any] | None) -> None:
    if count != "auto":
        check_count("prune", option, count, 0)
    if count and data is None:
        raise ConfigurationError(f"{option}={count} takes batches from data: pass batches of training images")
    if count and isinstance(data, Iterator):  # iter(data) would start the workers of a loader
        raise ConfigurationError(
            f"{option}={count} iterates data again after the criterion: pass a list or a loader, not an iterator"
        )


def _fitted(
    model: nn.Module,
    plan: PruningPlan,
    data: Iterable[Any] | None,
    recalibrated: int,
    reconstructed: int | Literal["auto"],
) -> dict[str, nn.Module]:
    """Return the fitted layers of a cut copy, so that the model is unchanged if anything fails."""
    if not recalibrated and (not reconstructed or plan.is_empty):
        return {}
    try:
        return _renewed(model, plan, data or (), recalibrated, reconstructed)
    except DataError as error:
        if reconstructed != "auto":
            raise
        log.warning("the layers behind the cut are not fitted to their former outputs: %s", error)
        return _fitted(model, plan, data, recalibrated, 0)


def _renewed(
    model: nn.Module,
    plan: PruningPlan,
    data: Iterable[Any],
    recalibrated: int,
    reconstructed: int | Literal["auto"],
) -> dict[str, nn.Module]:
    """Cut a copy, fit it, and return the layers that were fitted."""
    trial = snapshot(model)
    fitted: dict[str, nn.Module] = {}
    shrink(trial, plan)
    if reconstructed and not plan.is_empty:
        shown = few_examples(data, "prune") if reconstructed == "auto" else list(islice(data, reconstructed))
        fitted.update(fit_readers(trial, model, shown, None, plan))
        recalibrated = recalibrated or (len(shown) if tracked_norms(trial) else 0)
    if recalibrated:
        recalibration.recalibrate(trial, data, recalibrated)
        fitted.update(check_norms(trial))
    return fitted
