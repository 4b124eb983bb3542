"""`FilterPruning`: shrinks a model at scheduled epochs of a fit, which goes on with what is left."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from infoprune.allocation import Allocation, LatencyShare, get_allocation
from infoprune.allocation.rounding import RoundTo
from infoprune.allocation.solve import Measure
from infoprune.callbacks import shape_first
from infoprune.callbacks.announced import Announced
from infoprune.callbacks.calibration import calibration_batches, training_batches
from infoprune.callbacks.copies import check_copies, check_no_copies, with_copies, within
from infoprune.callbacks.either_name import EitherName
from infoprune.callbacks.example_inputs import example_inputs, none_yet, of_batch, undisturbed
from infoprune.callbacks.network import COMPILED, find_network
from infoprune.callbacks.original import Original, as_primitives, event_from_dict
from infoprune.callbacks.resets import reset_best, reset_early_stopping
from infoprune.callbacks.support import check_callbacks, check_started, check_strategy
from infoprune.callbacks.surgery import averaged_copies, in_names_of, shrink_in_fit
from infoprune.callbacks.together import averaged, together
from infoprune.callbacks.validated import Validated
from infoprune.checkpoint import RECORD, attach, plan_record
from infoprune.cost import Cost
from infoprune.criteria import Criterion, Scores, get_criterion
from infoprune.criteria.criterion import check_weights
from infoprune.decide import Decision, Target, decide, goal
from infoprune.errors import ConfigurationError
from infoprune.recalibration import check_norms, recalibrate
from infoprune.registry import check_count
from infoprune.report.collect import event_record
from infoprune.report.loggers import RunLog
from infoprune.report.record import EventRecord
from infoprune.schedule import Schedule
from infoprune.structure import PruningPlan, Structure, check_plan, plan_of, trace
from infoprune.structure.tracing.tracer import Inputs


class FilterPruning(EitherName):
    """Removes filters at the start of scheduled training epochs; the fit goes on with the smaller model.

    Adding it to a Trainer's callbacks is all that a project needs. At an event it scores the filters, decides how many
    each layer keeps, and physically shrinks the layers and everything that is coupled to them: batch norm, the layers
    that read them, the optimizer's state, averaged copies of the model (`WeightAveraging`), the DDP wrapper. Optimizer,
    parameter groups and schedulers stay the same objects. Between events it does nothing.

    Events happen at the *start* of an epoch, so that every checkpoint and every logged metric belongs to one shape of
    the model, and the last event is always followed by training. On several processes the scores are averaged and the
    decision is the first process's. Checkpoints carry the plan: they resume, test and load into the unpruned
    architecture (`infoprune.load_from_checkpoint` where no Trainer is at hand).

    What is pruned: if the LightningModule's forward is one call of its only submodule with parameters, that; else the
    whole LightningModule; or what ``module`` says. Layer names (``frozen``, logs) are relative to it. Parts that the
    training step reaches past the forward are not seen: freeze the layers that they read.

    ``Trainer(fast_dev_run=True)`` prunes all at once in its only epoch, so that the surgery is tried too.

    Logged at every event: ``prune/event`` (1, 2, ...), ``prune/macs``, ``prune/params``, what is left of them as
    ``prune/macs_ratio`` and ``prune/params_ratio`` (and ``prune/latency_ratio``, if that is the budget), and
    ``prune/width/<layer>``. All but the widths are also among the Trainer's ``callback_metrics``.

    Args:
        criterion: how much each filter matters: a name, ``{"name": ..., options}`` or a `Criterion`.
        schedule: when: an epoch, a list of epochs (equal steps), ``[epoch, fraction]`` pairs, or a mapping with
            ``start``, ``end``, ``every`` and ``kind``; see `infoprune.schedule.Schedule`.
        macs: share of the multiply-accumulates to keep in the end, in (0, 1].
        params: share of the parameters to keep in the end, in (0, 1].
        amount: share of the filters to remove from every group in the end, in [0, 1).
        latency: share of the time of a forward pass on the example inputs to keep in the end, in (0, 1], measured where
            the fit runs; give ``example_inputs`` with the batch size that counts. One of the four is needed, unless
            the allocation brings its own ratios.
        allocation: how the groups share the cut: a name, ``{"name": ..., options}`` or an `Allocation`.
        round_to: widths are multiples of this; "auto": of 4, 8 or 16 in layers of at least 16, 64 or 128 filters, since
            other widths are slow in most runtimes.
        min_width: the fewest units a group keeps.
        frozen: patterns of layers whose filters all stay.
        example_inputs: what to trace the forward with: a tensor, a tuple of positional or a dict of keyword arguments,
            or shapes (``[1, 3, 32, 32]``, a list or dict of such). Default: ``example_input_array``, else the first
            element of a training batch.
        module: attribute path of the network within the LightningModule; ``example_inputs``, if given, are then its.
        copies: parts of the LightningModule that follow another part by hand and have to keep its shape, such as a
            momentum encoder: ``{"momentum_net": "net"}``. Copies that nobody trains are refused unless they are named
            here; ``{}`` says that all of them (a teacher) stay as they are.
        calibration_images: training images that a criterion or allocation which looks at data is shown.
        recalibrate: training batches, transformed as in training, with which batch norm's statistics are measured anew
            right after each event; see `infoprune.recalibrate`. 0: not, so that the training that follows adapts them.
        reset_best: at every event let ModelCheckpoint forget its best score, so that "best" is the best pruned model.
            Files that it has written before stay.
        reset_early_stopping: at every event let EarlyStopping start over, so that a pruned model is not compared with
            the larger one.

    Attributes:
        history: an `EventRecord` for every event so far.
        original: the model before the first event, None until training starts.
        inputs: the example inputs of the network, None until training starts.

    Raises:
        ConfigurationError: an option that does not exist or cannot work; when a fit starts: an event beyond
            ``max_epochs``, or a strategy or callback that pruning would break (the message says what to use instead).
        BudgetError: when a fit starts: the frozen layers alone cost more than the budget.
        SurgeryError: an optimizer's state cannot be cut, or another process failed.

    Example:
        >>> callback = FilterPruning("l1", macs=0.5, schedule=[2, 4, 6])
        >>> callback.is_due(1), callback.is_due(2)
        (False, True)
    """

    def __init__(
        self,
        criterion: str | dict[str, Any] | Criterion = "capacity_independence",
        *,
        schedule: int | list[Any] | dict[str, Any] | Schedule,
        macs: float | None = None,
        params: float | None = None,
        amount: float | None = None,
        latency: float | None = None,
        allocation: str | dict[str, Any] | Allocation = "uniform",
        round_to: RoundTo = "auto",
        min_width: int = 1,
        frozen: Sequence[str] = (),
        example_inputs: Any = None,
        module: str | None = None,
        copies: dict[str, str] | None = None,
        calibration_images: int = 640,
        recalibrate: int = 0,
        reset_best: bool = False,
        reset_early_stopping: bool = False,
    ) -> None:
        super().__init__()
        self.criterion = get_criterion(criterion)
        self.schedule = Schedule.parse(schedule)
        self.target = Target(macs, params, amount, round_to, min_width, latency)
        self.allocation = get_allocation(allocation)
        self.frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        check_count("FilterPruning", "calibration_images", calibration_images, 1)
        check_count("FilterPruning", "recalibrate", recalibrate, 0)
        self.module = module
        self.copies = copies
        self.calibration_images = calibration_images
        self.recalibrate = recalibrate
        self.reset_best = reset_best
        self.reset_early_stopping = reset_early_stopping
        self.history: list[EventRecord] = []
        self.original: Original | None = None
        self.inputs: Inputs | None = None
        self._example_inputs = example_inputs
        self._path: str | None = module
        self._seen: Tensor | None = None
        self._plan = PruningPlan()
        self._validated = Validated()
        self._announced: Announced | None = None
        self._latency = 1.0  # what is left of the original's, as measured at the last event
        self._log: RunLog | None = None
        self._run: weakref.ref[pl.Trainer] | None = None
        self._fitted: weakref.ref[pl.LightningModule] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options as given, as plain data."""
        target = {name: value for name, value in vars(self.target).items() if value is not None}
        return {
            "criterion": self.criterion.name or type(self.criterion).__name__,
            "criterion_options": dict(self.criterion.options),
            **target,
            "schedule": [list(event) for event in self.schedule.events],
            "allocation": self.allocation.name or type(self.allocation).__name__,
            "allocation_options": dict(self.allocation.options),
            "frozen": list(self.frozen),
            **({"module": self.module} if self.module else {}),
            **({"copies": dict(self.copies)} if self.copies else {}),
            **({"recalibrate": self.recalibrate} if self.recalibrate else {}),
        }

    def network(self, module: nn.Module) -> nn.Module:
        """The part of a LightningModule (of the one that is trained, or a copy) that is pruned."""
        return module.get_submodule(self._path or "")

    def entrance(self, module: nn.Module) -> nn.Module:
        """What the LightningModule calls to run the network: the same, or ``torch.compile``'s wrapper around it."""
        return module.get_submodule((self._path or "").removesuffix(COMPILED).removesuffix("."))

    def is_due(self, epoch: int) -> bool:
        """Whether an event is to happen at the start of an epoch."""
        return self._fraction(epoch) is not None

    def _fraction(self, epoch: int) -> float | None:
        """How far an event at the start of an epoch is to go, None if nothing is due.

        What was missed, because the callback joined a run late, is made up for.
        """
        last = self.history[-1].epoch if self.history else -1
        due = [fraction for start, fraction in self.schedule.events if last < start <= epoch]
        return due[-1] if due else None

    # -- before training ----------------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer, pl_module)
            check_callbacks(trainer)
            self._check_others(trainer)
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.schedule.check(trainer.max_epochs)
            if self._run is None or self._run() is not trainer:
                self._start_over(trainer)
        attach(pl_module)
        shape_first.install(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        shape_first.uninstall(pl_module)

    def _start_over(self, trainer: pl.Trainer) -> None:
        """A new Trainer is a new run; where it resumes one, the state comes from the checkpoint."""
        self._run = weakref.ref(trainer)
        self._path = self.module
        self.history, self.original, self.inputs, self._seen = [], None, None, None
        self._fitted, self._plan, self._validated = None, PruningPlan(), Validated()
        self._announced, self._latency = None, 1.0

    def _check_others(self, trainer: pl.Trainer) -> None:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, FilterPruning) and other is not self:
                mine, others = (f"{callback.module}." for callback in (self, other))
                if None in (self.module, other.module) or mine.startswith(others) or others.startswith(mine):
                    raise ConfigurationError(
                        f"two FilterPruning callbacks prune the same part of the model ({self.module!r} and "
                        f"{other.module!r}): give each its own part with module=..., or leave one out"
                    )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_started(trainer, pl_module)
        self._check_shape(pl_module)
        self.inputs = None  # another fit may come with another module
        self._fitted = weakref.ref(pl_module)
        self._plan = plan_of(pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._log = RunLog(trainer.loggers)
            self._log.start(self.options)
        self.prepare(trainer, pl_module)
        if self.inputs is not None and self.original is None:
            with undisturbed(trainer.strategy.root_device):
                together(trainer, lambda: self._rehearse(trainer, pl_module))

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Settle which network is pruned, if that can be known before the first batch; once, on all processes."""
        if self.inputs is None:
            with undisturbed(trainer.strategy.root_device):
                together(trainer, lambda: self._find_inputs(trainer, pl_module))

    def _find_inputs(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Settle which network is pruned and what it is traced with, if that can be known yet."""
        inputs = example_inputs(trainer, pl_module, self._example_inputs)
        inputs = self._seen if inputs is None else inputs
        if inputs is not None:
            own = self._example_inputs is not None and self.module is not None
            self._path, self.inputs = find_network(trainer, pl_module, self.module, inputs, own)

    def structure(self, pl_module: pl.LightningModule) -> Structure:
        """Trace the network as it is now, which `prepare` has settled."""
        assert self.inputs is not None
        with torch.compiler.set_stance("force_eager"):
            copies = within(self.copies or {}, self._path or "")
            return trace(self.network(pl_module), self.inputs, [*self.frozen, *copies])

    def _rehearse(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the model as it is, and find out now whether it can be cut so far, not after hours of training."""
        if self.recalibrate:
            check_norms(self.network(pl_module))
            training_batches(trainer, self.recalibrate)
        check_weights(self.network(pl_module))
        check_copies(pl_module, self.copies or {})
        structure = self.structure(pl_module)
        if self.copies is None:
            check_no_copies(trainer, pl_module, self.network(pl_module), structure)
        allocation = get_allocation("uniform") if self.allocation.needs_data else self.allocation
        all_alike = {group.name: torch.ones(group.size, dtype=torch.float64) for group in structure.prunable}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure = self._measure(self.network(pl_module), structure, repeats=3)
            decide(pl_module, structure, self.target, self.criterion, allocation, scores=all_alike, measure=measure)
        self.original = Original.of(structure)

    # -- events -------------------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.inputs is None and self._seen is None:
            self._seen = of_batch(batch)
        if batch_idx == 0:
            # A fit that resumes behind the last batch of an epoch enters the next one without any epoch start.
            self._event_if_due(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._event_if_due(trainer, pl_module)

    def _event_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fraction = self._fraction(trainer.current_epoch)
        if trainer.fast_dev_run and not self.history:  # type: ignore[attr-defined]
            fraction = 1.0
        if fraction is not None:
            with undisturbed(trainer.strategy.root_device):
                self._event(trainer, pl_module, fraction)

    def _event(self, trainer: pl.Trainer, pl_module: pl.LightningModule, fraction: float) -> None:
        self.prepare(trainer, pl_module)
        if self.inputs is None:
            raise none_yet()
        structure, decision = self._decide(trainer, pl_module, fraction)
        assert self._path is not None
        plan = in_names_of(pl_module, self.network(pl_module), self._path, decision.plan)
        plan = with_copies(plan, self.copies or {})
        shrink_in_fit(trainer, pl_module, plan)
        self._plan = plan_of(pl_module)
        self._latency = decision.latency or self._latency
        if self.recalibrate:
            together(trainer, lambda: self._recalibrate(trainer, pl_module))
        self._note(trainer, pl_module, structure, decision)
        if self.reset_best:
            reset_best(trainer)
        if self.reset_early_stopping:
            reset_early_stopping(trainer)

    def _decide(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, fraction: float
    ) -> tuple[Structure, Decision]:
        """Score on every process, average, and take the first process's decision on all; once for each event."""
        network = self.network(pl_module)
        announced, self._announced = self._announced, None
        if announced is not None and announced.fraction == fraction:
            decision = Decision(announced.plan, announced.scores, latency=announced.latency)
            return self.structure(pl_module), decision

        looks = self.criterion.needs_data or self.allocation.needs_data
        data = calibration_batches(trainer, self.calibration_images) if looks else None

        def score() -> tuple[Structure, Scores]:
            structure = self.structure(pl_module)
            with torch.compiler.set_stance("force_eager"):
                return structure, self.criterion(network, structure, data)

        def prepare() -> Allocation:
            kind, keep = goal(self.target, structure, fraction, original.cost, original.sizes)
            with torch.compiler.set_stance("force_eager"):
                return self.allocation.prepared(network, structure, data, scores=scores, kind=kind, keep=keep)

        if self.original is None:  # a stream shows what the model takes only once training runs
            together(trainer, lambda: self._rehearse(trainer, pl_module))
        assert self.original is not None
        structure, own_scores = together(trainer, score)
        original, scores = self.original, averaged(trainer, own_scores)
        allocation = together(trainer, prepare)

        def choose() -> Decision:
            if self.target.latency is not None and not trainer.is_global_zero:
                return Decision(PruningPlan(), scores)  # one process measures, the others keep still
            decision = decide(
                network,
                structure,
                self.target,
                self.criterion,
                allocation,
                fraction=fraction,
                reference=original.cost,
                sizes=original.sizes,
                scores=scores,
                measure=self._measure(network, structure),
            )
            assert self.inputs is not None
            with torch.compiler.set_stance("force_eager"):
                check_plan(network, self.inputs, structure, decision.plan)
            return decision

        decision = together(trainer, choose)
        plan, latency = trainer.strategy.broadcast((decision.plan.to_dict(), decision.latency))
        return structure, replace(decision, plan=PruningPlan.from_dict(plan), latency=latency)

    def _measure(self, network: nn.Module, structure: Structure, repeats: int = 15) -> Measure | None:
        """The share of the original's time that widths take, with a latency budget.

        The model of now is timed against the narrower one, and the shares of all events multiply, since the original
        is gone after the first.
        """
        if self.target.latency is None:
            return None
        return LatencyShare(network, structure, self.inputs, repeats, now=self._latency)

    def announce(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Structure, PruningPlan] | None:
        """Decide now what the next event removes, for somebody who prepares the model for it.

        The event will remove exactly that, whatever the scores are by then.

        Returns:
            The network's structure and the plan, None if there is no event to come.
        """
        upcoming = [fraction for epoch, fraction in self.schedule.events if epoch > trainer.current_epoch]
        self.prepare(trainer, pl_module)
        if not upcoming or self.inputs is None:
            return None
        with undisturbed(trainer.strategy.root_device):
            structure, decision = self._decide(trainer, pl_module, upcoming[0])
        self._announced = Announced(upcoming[0], decision.plan, decision.scores, decision.latency)
        return structure, decision.plan

    def _recalibrate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure batch norm anew in the model and in averaged copies of it, at the precision of training."""
        for module in (pl_module, *averaged_copies(trainer)):
            data = training_batches(trainer, self.recalibrate)
            with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
                recalibrate(self.network(module), data, self.recalibrate)

    def _note(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure, decision: Decision
    ) -> None:
        """Append the event to the history and log it."""
        event = event_record(
            len(self.history),
            trainer.current_epoch,
            trainer.global_step,
            self.criterion.name or type(self.criterion).__name__,
            structure,
            decision.plan,
            decision.scores,
            self._validated.metrics,
        )
        self.history.append(event)
        assert self.original is not None
        macs, params = Cost(event.macs, event.params).ratio(self.original.cost)
        ratios = {"prune/macs_ratio": macs, "prune/params_ratio": params}
        if self.target.latency is not None:
            ratios["prune/latency_ratio"] = self._latency
        if self._log is not None:
            self._log.event(event, ratios)
        totals = {
            "prune/event": event.index + 1.0,
            "prune/macs": float(event.macs),
            "prune/params": float(event.params),
        }
        # For filenames and monitors; the loggers have it already, with the step at which it happened.
        pl_module.log_dict(
            {**totals, **ratios}, logger=False, on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        missed = [epoch for epoch in self.schedule.epochs if not self.history or epoch > self.history[-1].epoch]
        if missed and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warnings.warn(
                f"training ended in epoch {trainer.current_epoch}, before the pruning events of epochs {missed}: the "
                f"model was pruned {len(self.history)} of {len(self.schedule.events)} times",
                stacklevel=2,
            )

    # -- metrics of the larger and the smaller model ------------------------------------------------------------------

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated.start(trainer)
        else:
            self._check_shape(pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated.end(trainer)
            if self.history:
                self.history[-1].metrics_after = dict(self._validated.metrics)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_shape(pl_module)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_shape(pl_module)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [as_primitives(event) for event in self.history],
            "original": None if self.original is None else as_primitives(self.original),
            "validated": dict(self._validated.metrics),
            "seen": self._seen,
            "latency": self._latency,
            "announced": None if self._announced is None else self._announced.to_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        original = state_dict["original"]
        self.history = [event_from_dict(event) for event in state_dict["history"]]
        self.original = None if original is None else Original.from_dict(original)
        self._validated.metrics = dict(state_dict["validated"])
        self._seen = state_dict["seen"]
        self._latency = state_dict.get("latency", 1.0)
        announced = state_dict.get("announced")
        self._announced = None if announced is None else Announced.from_dict(announced)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RECORD] = plan_record(pl_module)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_fitted(pl_module):
            self._plan = plan_of(pl_module)

    def _is_fitted(self, pl_module: pl.LightningModule) -> bool:
        return self._fitted is not None and self._fitted() is pl_module

    def _check_shape(self, pl_module: pl.LightningModule) -> None:
        """A configure_model that builds its layers whenever it is called would silently undo the pruning."""
        if self._is_fitted(pl_module) and plan_of(pl_module) != self._plan:
            raise ConfigurationError(
                f"{type(pl_module).__name__} no longer has the shape that it was pruned to. Most likely its "
                "configure_model built the network anew, with fresh weights: let it return at once if the network is "
                "there (`if self.net is not None: return`)"
            )
