"""`PruningEngine`: decide what an event of a fit removes, alike on all processes, and remove it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from infoprune.allocation import Allocation, Auto, LatencyShare, get_allocation
from infoprune.allocation.solve import Measure
from infoprune.callbacks.engine.copies import with_followers
from infoprune.callbacks.engine.copy_tracker import CopyTracker
from infoprune.callbacks.engine.held_copies import HeldCopies
from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.met_weights import with_compared
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.pending_event import PendingEvent
from infoprune.callbacks.engine.renewal import Renewal
from infoprune.callbacks.engine.surgery import in_names_of, shrink_in_fit
from infoprune.callbacks.engine.training_data import EXAMPLES, calibration_batches, no_batch_yet, training_batches
from infoprune.callbacks.engine.training_step import TrainingStep, modules_run
from infoprune.criteria import Scores
from infoprune.criteria.checks import check_weights
from infoprune.decide import Decision, decide, goal
from infoprune.distributed import broadcast_from_first, mean_over_ranks, on_all_ranks
from infoprune.errors import ConfigurationError, DataError
from infoprune.recalibration import check_norms
from infoprune.report.collect import UnprunedStats
from infoprune.structure import PruningPlan, Structure, check_plan
from infoprune.structure.verify import check_exact

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


class PruningEngine:
    """Prune the network of one fit.

    Every public method that takes a Trainer is a collective call: all processes have to make it.

    Args:
        options: what is pruned, how and how far.

    Attributes:
        located: where the network is in the LightningModule, and its example inputs.
        unpruned: the model before the first event; None until `check_ahead` has traced it.
        pending: the next event, if it is decided already.
        copies: the copies of parts within the LightningModule, which follow the cut or stay as they are.
        held: the copies outside of the LightningModule.
        latency_ratio: with a latency budget, the share of the unpruned model's time, as measured at the last event.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.located = LocatedNetwork(options)
        self.unpruned: UnprunedStats | None = None
        self.pending: PendingEvent | None = None
        self.latency_ratio = 1.0
        self.copies = CopyTracker(options.follow)
        self.held = HeldCopies()

    # -- before the first event ---------------------------------------------------------------------------------------

    def see_batch(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        """Find the network by a training batch, if it could not be found before training.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            batch: the batch that the training step is to receive.
            index: the batch's number in the epoch.
        """
        if index <= 1:  # before and after the first step
            self.held.look(trainer, module)
        if self.located.takes_batch(batch):
            self.prepare(trainer, module)
            self.check_ahead(trainer, module)

    def prepare(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Find the network and its example inputs, if they can be known before the first batch.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
        """
        if not self.located.is_settled:
            with _rng_isolated(trainer):
                on_all_ranks(lambda: self.located.find(trainer, module))

    def structure(self, module: pl.LightningModule) -> Structure:
        """Trace the network as it is now; call `prepare` first.

        Args:
            module: the LightningModule.
        """
        return self.located.structure(module, self.copies.within(self.located.path or ""))

    def check_ahead(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Describe the unpruned model, and check before training whether it can be pruned to the target.

        Args:
            trainer: the Trainer.
            module: its LightningModule.

        Raises:
            InfopruneError: whatever would be refused at an event.
        """
        if self.located.inputs is not None and self.unpruned is None:
            with _rng_isolated(trainer):
                on_all_ranks(lambda: self._check_ahead(trainer, module))

    def _check_ahead(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        options, network = self.options, self.located.within(module)
        if options.recalibration_batches:
            check_norms(network)
        for option in ("recalibration_batches", "reconstruction_batches"):
            if count := getattr(options, option):
                training_batches(trainer, count, option)
        check_weights(network)
        self.copies.check(module)
        self._find_copies(trainer, module)
        structure = self.structure(module)
        self._decide_ahead(trainer, module, structure)
        self.unpruned = UnprunedStats.of(structure)

    def _find_copies(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.located.inputs is not None
        try:
            with trainer.precision_plugin.forward_context():
                run_in_eval = modules_run(module, self.located.within(module), self.located.inputs)
        except Exception as error:  # of the user's code; the trace reports it as an error of ours
            log.debug("The forward could not be watched: %s: %s", type(error).__name__, error)
            run_in_eval = set()
        self.copies.find(trainer, module, run_in_eval, self.located.watched)

    def _decide_ahead(self, trainer: pl.Trainer, module: pl.LightningModule, structure: Structure) -> None:
        """Score with one batch and decide, so that what an event would refuse is refused before training."""
        options, network = self.options, self.located.within(module)
        criterion, allocation = options.criterion, options.allocation
        batch: list[Any] | None = None
        if criterion.needs_data or (allocation.needs_data and not isinstance(allocation, Auto)):
            size = getattr(trainer.train_dataloader, "batch_size", None) or EXAMPLES
            images = min(size * trainer.world_size, options.calibration_images)
            batch = list(islice(self._data(trainer, module, images) or (), 1))
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            scores = criterion(network, structure, batch)
            if isinstance(allocation, Auto):
                allocation = get_allocation("uniform")  # "auto" falls back on a rule where it cannot measure
            kind, keep = goal(options.target, structure)
            allocation = allocation.prepared(network, structure, batch, scores=scores, kind=kind, keep=keep)
            measure = self._measure(network, structure, repeats=3)
            decide(module, structure, options.target, criterion, allocation, scores=scores, measure=measure)

    # -- events -------------------------------------------------------------------------------------------------------

    def run_event(self, trainer: pl.Trainer, module: pl.LightningModule, fraction: float) -> tuple[Structure, Decision]:
        """Prune the model of a running fit.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            fraction: share of the whole cut to reach, in (0, 1].

        Returns:
            The network's structure before the event, and the decision.

        Raises:
            ConfigurationError: no example input is known.
            VerificationError: the cut would change what the network computes; nothing was changed.
            SurgeryError: the training step would fail afterwards; nothing was changed.
        """
        self.prepare(trainer, module)
        if self.located.inputs is None:
            raise no_batch_yet()
        with _rng_isolated(trainer):
            structure, decision = self._decide(trainer, module, fraction)
            assert self.located.path is not None
            if self.options.verify and not isinstance(self.located.inputs, TrainingStep):  # a step may write parameters
                on_all_ranks(lambda: self._verify(module, decision.plan))
            plan = in_names_of(module, self.located.within(module), self.located.path, decision.plan)
            renewal = Renewal(trainer, module, self.located, self.options)
            step = self.located.step_check(trainer, module)
            plan = with_compared(module, with_followers(plan, self.copies.follow), step.met.own)
            held = self.held.following(trainer, module, plan, step.met)
            shrink_in_fit(trainer, module, plan, held, step.again)
            self.latency_ratio = decision.latency or self.latency_ratio
            renewal.run(decision.plan)
        return structure, decision

    def plan_event(
        self, trainer: pl.Trainer, module: pl.LightningModule, fraction: float
    ) -> tuple[Structure, PruningPlan] | None:
        """Decide the next event in advance; it will remove exactly that, whatever the scores are by then.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            fraction: share of the whole cut that the event reaches, in (0, 1].

        Returns:
            The network's structure and the plan; None if no example input is known.
        """
        self.prepare(trainer, module)
        if self.located.inputs is None:
            return None
        with _rng_isolated(trainer):
            structure, decision = self._decide(trainer, module, fraction)
        self.pending = PendingEvent(fraction, decision.plan, decision.scores, decision.latency)
        return structure, decision.plan

    def _decide(self, trainer: pl.Trainer, module: pl.LightningModule, fraction: float) -> tuple[Structure, Decision]:
        """Score on every process, average the scores, and decide alike on all processes."""
        if trainer.global_step == 0:
            self.copies.check_clear()
        self.copies.settle(module)
        pending, self.pending = self.pending, None
        if pending is not None and pending.fraction == fraction:
            return self.structure(module), Decision(pending.plan, pending.scores, latency=pending.latency)
        self.check_ahead(trainer, module)  # a stream gives example inputs only once training runs
        structure, own_scores = on_all_ranks(lambda: self._score(trainer, module))
        scores = mean_over_ranks(own_scores)
        allocation = on_all_ranks(lambda: self._prepare_allocation(trainer, module, structure, scores, fraction))
        decision = on_all_ranks(lambda: self._choose(trainer, module, structure, scores, allocation, fraction))
        measured = decision.latency, decision.latency_error
        plan, (latency, error) = broadcast_from_first((decision.plan.to_dict(), measured))
        return structure, replace(decision, plan=PruningPlan.from_dict(plan), latency=latency, latency_error=error)

    def _score(self, trainer: pl.Trainer, module: pl.LightningModule) -> tuple[Structure, Scores]:
        structure = self.structure(module)
        with torch.compiler.set_stance("force_eager"):
            return structure, self.options.criterion(
                self.located.within(module), structure, self._data(trainer, module)
            )

    def _prepare_allocation(
        self, trainer: pl.Trainer, module: pl.LightningModule, structure: Structure, scores: Scores, fraction: float
    ) -> Allocation:
        assert self.unpruned is not None
        kind, keep = goal(self.options.target, structure, fraction, self.unpruned.cost, self.unpruned.sizes)
        with torch.compiler.set_stance("force_eager"):
            return self.options.allocation.prepared(
                self.located.within(module), structure, self._data(trainer, module), scores=scores, kind=kind, keep=keep
            )

    def _data(self, trainer: pl.Trainer, module: pl.LightningModule, images: int | None = None) -> Iterable[Any] | None:
        """Return calibration batches of ``images`` images, if the criterion or the allocation looks at data."""
        criterion, allocation = self.options.criterion, self.options.allocation
        if not criterion.needs_data and not allocation.needs_data:
            return None
        try:
            batches = calibration_batches(trainer, images or self.options.calibration_images)
            return self.located.received(trainer, module, batches)
        except (ConfigurationError, DataError):  # a stream, or too few images
            if criterion.needs_data or not isinstance(allocation, Auto):
                raise
            return None

    def _choose(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        structure: Structure,
        scores: Scores,
        allocation: Allocation,
        fraction: float,
    ) -> Decision:
        target = self.options.target
        if (target.latency is not None or target.backend is not None) and not trainer.is_global_zero:
            return Decision(PruningPlan(), scores)  # one process measures while the others are idle
        assert self.unpruned is not None
        assert self.located.inputs is not None
        network = self.located.within(module)
        decision = decide(
            network,
            structure,
            target,
            self.options.criterion,
            allocation,
            fraction=fraction,
            reference=self.unpruned.cost,
            sizes=self.unpruned.sizes,
            scores=scores,
            measure=self._measure(network, structure),
        )
        with torch.compiler.set_stance("force_eager"):
            check_plan(network, self.located.inputs, structure, decision.plan)
        return decision

    def _measure(self, network: nn.Module, structure: Structure, repeats: int | None = None) -> Measure | None:
        """Return a measure of widths for a latency budget: their share of the unpruned model's time.

        The unpruned model is gone after the first event: the shares of all events multiply.
        """
        if self.options.target.latency is None:
            return None
        backend = self.options.target.backend or "eager"
        return LatencyShare(network, structure, self.located.inputs, repeats, self.latency_ratio, backend)

    def _verify(self, module: pl.LightningModule, plan: PruningPlan) -> None:
        assert self.located.inputs is not None
        with torch.compiler.set_stance("force_eager"):
            check_exact(self.located.within(module), plan, self.located.inputs)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint. All versions write the same keys."""
        return {
            "original": None if self.unpruned is None else self.unpruned.to_dict(),
            "seen": None,
            **self.copies.state_dict(),
            "held": self.held.state_dict(),
            "latency": self.latency_ratio,
            "announced": None if self.pending is None else self.pending.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: from a checkpoint.
        """
        unpruned, pending = state["original"], state.get("announced")
        self.unpruned = None if unpruned is None else UnprunedStats.from_dict(unpruned)
        self.copies.load_state_dict(state)
        self.held.load_state_dict(state.get("held", []))
        self.latency_ratio = state.get("latency", 1.0)
        self.pending = None if pending is None else PendingEvent.from_dict(pending)


def _rng_isolated(trainer: pl.Trainer) -> AbstractContextManager[None]:
    """Restore the state of all random generators afterwards, so that an event does not change the data's order."""
    isolated: AbstractContextManager[None] = isolate_rng(trainer.strategy.root_device.type == "cuda")
    return isolated
