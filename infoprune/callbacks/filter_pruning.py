"""`FilterPruning`: prune a model at scheduled epochs of a fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from torch import nn
from typing_extensions import override

from infoprune.allocation import Allocation, get_allocation
from infoprune.allocation.patterns import MinWidth
from infoprune.allocation.rounding import RoundTo
from infoprune.backends import Backend, get_backend
from infoprune.callbacks.engine import EngineOptions, PruningEngine
from infoprune.callbacks.scheduled_events import ScheduledEvents
from infoprune.callbacks.trainer_checks import (
    check_callbacks,
    check_started,
    check_strategy,
    reset_best,
    reset_early_stopping,
)
from infoprune.criteria import Criterion, get_criterion
from infoprune.decide import Target
from infoprune.deprecated import filters_to_keep, renamed
from infoprune.distributed import on_all_ranks
from infoprune.schedule import Schedule
from infoprune.structure import PruningPlan, Structure

if TYPE_CHECKING:
    from infoprune.inputs import Inputs
    from infoprune.report.collect import UnprunedStats

log = logging.getLogger(__name__)


class FilterPruning(ScheduledEvents):
    """Remove filters at the start of scheduled training epochs; the fit goes on with the smaller model.

    A project only adds it to the Trainer's callbacks. At an event it scores the filters, decides how many each layer
    keeps, and shrinks the layers and everything coupled to them: batch norm, the layers that read them, the
    optimizer's state, averaged copies, the DDP wrapper. Optimizer, parameter groups and schedulers stay the same.

    Events happen at the *start* of an epoch, so that every checkpoint and every logged metric belongs to one shape of
    the model, and the last event is always followed by training. On several processes the scores are averaged and the
    first process decides. Checkpoints contain the plan: they resume, test and load into the unpruned architecture
    (`infoprune.load_from_checkpoint` without a Trainer).

    The pruned part is the one that ``module`` names. By default it is the LightningModule's only submodule with
    parameters, if the forward is one call of it; otherwise the whole LightningModule. Layer names (``frozen``, logs)
    are relative to this part.

    ``Trainer(fast_dev_run=True)`` makes the whole cut in its only epoch, so that the surgery is tested too.

    Logged at every event: ``prune/event`` (1, 2, ...), ``prune/macs``, ``prune/params``, their remaining shares
    ``prune/macs_ratio`` and ``prune/params_ratio`` (and ``prune/latency_ratio``, if that is the budget), and
    ``prune/width/<layer>``. All but the widths are also among the Trainer's ``callback_metrics``.

    Args:
        criterion: how much each filter matters: a name, ``{"name": ..., options}`` or a `Criterion`.
        schedule: when: an epoch, a list of epochs (equal steps), ``[epoch, fraction]`` pairs, or a mapping with
            ``start``, ``end``, ``every`` and ``kind``; see `infoprune.schedule.Schedule`.
        macs: multiply-accumulates to keep in the end: a share in (0, 1] or as ``"60%"``, or their number (``200e6``).
        params: share of the parameters to keep in the end, in (0, 1] or as ``"60%"``, or their number.
        filters: share of the filters to keep in every group in the end, in (0, 1] or as ``"60%"``.
        latency: share of the time of a forward pass on the example inputs to keep in the end, in (0, 1], measured where
            the fit runs; pass ``example_inputs`` with the batch size of deployment. One of ``macs``, ``params``,
            ``filters`` and ``latency`` is required, unless the allocation has its own ratios.
        backend: where the model will run, and where ``latency`` is measured: ``"eager"`` (the default for ``latency``),
            ``"onnxruntime"``, ``"openvino"``, or another; see `infoprune.latency`. With ``round_to="auto"``, widths are
            then multiples that were measured to be fast there.
        allocation: how the cut is divided among the groups: a name, ``{"name": ..., options}`` or an `Allocation`.
            "auto" measures the loss of cutting each group at every event (`infoprune.allocation.InformationLoss`);
            with ``filters``, every group keeps the same share.
        round_to: widths are multiples of this; "auto": of 4, 8 or 16 in layers of at least 16, 64 or 128 filters, since
            other widths are slow in most runtimes.
        min_width: the fewest units a group keeps, a number or a share; by layer: ``{"layer1.*": 8, "*": 0.25}``.
        frozen: layers, or patterns of their names, whose filters all stay.
        example_inputs: arguments to trace the forward with: a tensor, a tuple of positional or a dict of keyword
            arguments, shapes (``[1, 3, 32, 32]``, a list or dict of such), or several :class:`infoprune.Examples`.
            Default: ``example_input_array``, else the inputs of the network in a training step.
        module: attribute path of the network within the LightningModule; ``example_inputs`` are then the network's.
        follow: parts of the LightningModule that your code updates from another part and that must keep its shape,
            such as a momentum encoder: ``{"momentum_net": "net"}``. Default: copies that training updates, and averages
            that it may update later; ``{}``: none.
        calibration_images: number of training images for a criterion or allocation that needs data.
        recalibration_batches: number of training batches, transformed as in training, on which batch norm's statistics
            are measured again right after each event; see `infoprune.recalibrate`. 0: none; the training that follows
            adapts them.
        reconstruction_batches: number of training batches on which, right after each event, the layers that read
            removed filters are fitted to their former outputs, by least squares, and batch norm's statistics are
            measured again; see `infoprune.reconstruct`. "auto": the calibration images of criterion or allocation, and
            only trained layers (not frozen by ``requires_grad``); if there are too few, the kept weights do not change
            and the log says so. 0: none; an event does not change the kept weights.
        verify: before each cut, compare the outputs of the masked and the shrunk network on the example inputs, and
            cut only if they are the same. Takes three to eight forward passes an event.
        validate_cuts: run the validation once after each event, before training continues, so that the log and the
            report show the loss by the cut alone (logged as ``prune/after_cut/<metric>``). Costs one more validation
            per event.
        reset_best: reset ModelCheckpoint's best score at every event, so that "best" is the best model of the
            final shape. Files that it has written before stay. False: "best" may be the unpruned model.
        reset_early_stopping: restart EarlyStopping at every event, so that a pruned model is not compared with
            the larger one.
        copies: deprecated, see ``follow``.
        amount: deprecated, see ``filters``.
        recalibrate: deprecated, see ``recalibration_batches``.

    Attributes:
        history: an `EventRecord` for every event so far.

    Raises:
        ConfigurationError: an option that does not exist or cannot work; when a fit starts: an event beyond
            ``max_epochs``, or a strategy or callback that pruning would break (the message says what to use instead).
        BudgetError: when a fit starts: the frozen layers alone cost more than the budget.
        VerificationError: at an event: the cut would change the outputs of the network; nothing was changed.
        SurgeryError: an optimizer's state cannot be cut, or another process failed.

    Example:
        >>> callback = FilterPruning("l1", macs=0.5, schedule=[2, 4, 6])
        >>> callback.is_due(1), callback.is_due(2)
        (False, True)
    """

    def __init__(
        self,
        criterion: str | dict[str, Any] | Criterion = "l1",
        *,
        schedule: int | list[Any] | dict[str, Any] | Schedule,
        macs: float | str | None = None,
        params: float | str | None = None,
        filters: float | str | None = None,
        latency: float | str | None = None,
        backend: str | dict[str, Any] | Backend | Callable[[Any, Any], float] | None = None,
        allocation: str | dict[str, Any] | Allocation = "auto",
        round_to: RoundTo = "auto",
        min_width: MinWidth = 1,
        frozen: Sequence[str | nn.Module] = (),
        example_inputs: Any = None,
        module: str | None = None,
        follow: Mapping[str, str] | None = None,
        calibration_images: int = 640,
        recalibration_batches: int = 0,
        reconstruction_batches: int | Literal["auto"] = "auto",
        verify: bool = True,
        validate_cuts: bool = False,
        reset_best: bool = True,
        reset_early_stopping: bool = False,
        copies: Mapping[str, str] | None = None,
        amount: float | None = None,
        recalibrate: int | None = None,
    ) -> None:
        super().__init__(Schedule.parse(schedule))
        self.module = module
        self.validate_cuts = validate_cuts
        self.reset_best = reset_best
        self.reset_early_stopping = reset_early_stopping
        keep = filters_to_keep("FilterPruning", filters, amount)
        home = None if backend is None else get_backend(backend)
        self._engine = PruningEngine(
            EngineOptions(
                get_criterion(criterion),
                Target(macs, params, keep, round_to, min_width, latency, home),
                get_allocation(allocation),
                (frozen,) if isinstance(frozen, (str, nn.Module)) else tuple(frozen),
                example_inputs,
                module,
                renamed("FilterPruning", "follow", follow, "copies", copies),
                calibration_images,
                renamed("FilterPruning", "recalibration_batches", recalibration_batches, "recalibrate", recalibrate),
                reconstruction_batches,
                verify,
            )
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options as given, as plain data."""
        return {
            **self._engine.options.described(),
            "schedule": [list(event) for event in self.schedule.events],
            "frozen": list(self._engine.located.frozen),
            **({"validate_cuts": True} if self.validate_cuts else {}),
        }

    @property
    def unpruned(self) -> UnprunedStats | None:
        """Cost and channel groups of the model before the first event, None until training starts."""
        return self._engine.unpruned

    @property
    def original(self) -> UnprunedStats | None:
        """The old name of ``unpruned``; deprecated."""
        warnings.warn("FilterPruning.original is now called unpruned", DeprecationWarning, stacklevel=2)
        return self.unpruned

    @property
    def inputs(self) -> Inputs | None:
        """The example inputs of the network, None until they are known."""
        return self._engine.located.inputs

    def network(self, module: nn.Module) -> nn.Module:
        """Return the part of a LightningModule that is pruned; `prepare` has to have found it.

        Args:
            module: The LightningModule of the fit, or a copy of it.
        """
        return self._engine.located.within(module)

    def wrapped_network(self, module: nn.Module) -> nn.Module:
        """Return the module that the LightningModule calls: the network, or ``torch.compile``'s wrapper around it.

        Args:
            module: The LightningModule of the fit, or a copy of it.
        """
        return self._engine.located.wrapped_within(module)

    # -- before training ----------------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer, pl_module)
            check_callbacks(trainer, self)
        super().setup(trainer, pl_module, stage)

    @override
    def start_over(self) -> None:
        super().start_over()
        self._engine = PruningEngine(self._engine.options)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_started(trainer, pl_module)
        super().on_fit_start(trainer, pl_module)
        self._engine.located.inputs = None  # another fit may come with another module

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        on_all_ranks(lambda: self._start(trainer, pl_module))

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.prepare(trainer, pl_module)
        self._log.start(trainer, self.options)
        self._engine.check_ahead(trainer, pl_module)
        if self.is_due(0) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._engine.copies.check_clear()

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the network and its example inputs, if they can be known before the first batch.

        A collective call: every process has to make it.

        Args:
            trainer: The Trainer.
            pl_module: Its LightningModule.
        """
        self._engine.prepare(trainer, pl_module)

    def structure(self, pl_module: pl.LightningModule) -> Structure:
        """Trace the network as it is now; `prepare` has to have found it.

        Args:
            pl_module: The LightningModule of the fit.
        """
        return self._engine.structure(pl_module)

    # -- events -------------------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._engine.see_batch(trainer, pl_module, batch, batch_idx)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.inputs is not None:  # else the first batch has to show what the model takes
            super().on_train_epoch_start(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._engine.held.look(trainer, pl_module)

    @override
    def run_event(self, trainer: pl.Trainer, pl_module: pl.LightningModule, fraction: float) -> None:
        structure, decision = self._engine.run_event(trainer, pl_module, fraction)
        self._guard.update(pl_module)
        self._log.add(trainer, pl_module, structure, decision, self._engine, validate=self.validate_cuts)
        if self.reset_best:
            reset_best(trainer)
        if self.reset_early_stopping:
            reset_early_stopping(trainer)

    def plan_next_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Structure, PruningPlan] | None:
        """Decide the next event in advance, for callbacks that prepare the model for it.

        The event will apply exactly this plan, even if the scores change. A collective call: every process must
        make it.

        Args:
            trainer: The Trainer.
            pl_module: Its LightningModule.

        Returns:
            The network's structure and the plan; None if no event follows.
        """
        upcoming = [fraction for epoch, fraction in self.schedule.events if epoch > trainer.current_epoch]
        return self._engine.plan_event(trainer, pl_module, upcoming[0]) if upcoming else None

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        stayed = self._engine.copies.stayed
        if stayed and self.history and isinstance(exception, RuntimeError):
            log.error(
                "If the update of an average has failed: copies that the training step runs are taken for teachers and "
                "stay whole, unless they have changed by the first event. With FilterPruning(follow=%s) they are cut "
                "alike",
                stayed,
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._log.state_dict(), **self._engine.state_dict()}

    @override
    def take_up(self, state_dict: dict[str, Any]) -> None:
        self._log.load_state_dict(state_dict)
        self._engine.load_state_dict(state_dict)
