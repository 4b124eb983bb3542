"""`PruningEngine`: decide what an event of a fit removes, alike on all processes, and remove it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from infoprune.allocation import Auto, Uniform
from infoprune.callbacks.engine.copy_tracker import CopyTracker
from infoprune.callbacks.engine.decider import Decider
from infoprune.callbacks.engine.fit_cut import FitCut
from infoprune.callbacks.engine.held_copies import HeldCopies
from infoprune.callbacks.engine.isolation import isolated
from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.pending_event import PendingEvent
from infoprune.callbacks.engine.renewal import Renewal
from infoprune.callbacks.engine.training_data import no_batch_yet, training_batches
from infoprune.callbacks.engine.training_step import TrainingStep, modules_run
from infoprune.criteria.checks import check_weights
from infoprune.decide import Decision
from infoprune.distributed import broadcast_from_first, failed_only_by, mean_over_ranks, on_all_ranks
from infoprune.errors import PlanError, SurgeryError
from infoprune.recalibration import check_norms
from infoprune.report.collect import UnprunedStats
from infoprune.structure import PruningPlan, Structure
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
        decider: scores and decides.
        pending: the next event, if it is decided already.
        copies: the copies of parts within the LightningModule, which follow the cut or stay as they are.
        held: the copies outside of the LightningModule.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.located = LocatedNetwork(options)
        self.decider = Decider(options, self.located)
        self.pending: PendingEvent | None = None
        self.copies = CopyTracker(options.follow)
        self.held = HeldCopies()
        self._ahead: PruningPlan | None = None  # what the fit may remove in the end, to be rehearsed

    @property
    def unpruned(self) -> UnprunedStats | None:
        """Return the model before the first event; None until `check_ahead` has traced it."""
        return self.decider.unpruned

    @property
    def latency_ratio(self) -> float:
        """Return, with a latency budget, the share of the unpruned model's time that was measured at the last event."""
        return self.decider.latency_ratio

    # -- before the first event ---------------------------------------------------------------------------------------

    def see_batch(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        """Find the network by a training batch, if it could not be found before, and rehearse a cut before the first.

        The hooks of the fit's start have run by then, which a training step may rely on.

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
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            with isolated(trainer, module):
                on_all_ranks(lambda: self._cut(trainer, module).rehearse(ahead))

    def prepare(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Find the network and its example inputs, if they can be known before the first batch.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
        """
        if not self.located.is_settled:
            with isolated(trainer, module):
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
            with isolated(trainer, module):
                plan = on_all_ranks(lambda: self._check_ahead(trainer, module))
                # By scores of their own, processes may have chosen other filters.
                self._ahead = PruningPlan.from_dict(broadcast_from_first(plan.to_dict()))

    def _check_ahead(self, trainer: pl.Trainer, module: pl.LightningModule) -> PruningPlan:
        options, network = self.options, self.located.within(module)
        if options.recalibration_batches:
            check_norms(network)
        for option in ("recalibration_batches", "reconstruction_batches"):
            if (count := getattr(options, option)) not in (0, "auto"):
                training_batches(trainer, count, option)
        check_weights(network)
        self.copies.check(module)
        self._find_copies(trainer, module)
        structure = self.structure(module)
        plan = self.decider.ahead(trainer, module, structure)
        self.decider.unpruned = UnprunedStats.of(structure)
        return plan

    def _find_copies(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.located.inputs is not None
        try:
            with trainer.precision_plugin.forward_context():
                run_in_eval = modules_run(module, self.located.within(module), self.located.inputs)
        except Exception as error:  # of the user's code; the trace reports it as an error of ours
            log.debug("The forward could not be watched: %s: %s", type(error).__name__, error)
            run_in_eval = set()
        self.copies.find(trainer, module, run_in_eval, self.located.watched)

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
        with isolated(trainer, module), self.decider.event():
            cut = self._settled_cut(trainer, module)
            renewal = Renewal(trainer, module, self.located, self.options, self.decider)

            def apply(plan: PruningPlan) -> None:
                if self.options.verify and not isinstance(self.located.inputs, TrainingStep):  # it may write parameters
                    self._verify(module, plan)
                cut.apply(plan)

            structure, decision = self._decide(trainer, module, fraction, apply)
            self.decider.latency_ratio = decision.latency or self.latency_ratio
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
        with isolated(trainer, module), self.decider.event():
            cut = self._settled_cut(trainer, module)
            rehearse = cut.rehearse if isinstance(self.options.allocation, Auto) else lambda _: None
            structure, decision = self._decide(trainer, module, fraction, rehearse)
        self.pending = PendingEvent(fraction, decision.plan, decision.scores, decision.latency)
        return structure, decision.plan

    def _settled_cut(self, trainer: pl.Trainer, module: pl.LightningModule) -> FitCut:
        """Return how to cut, once it is decided which copies follow."""
        if trainer.global_step == 0:
            self.copies.check_clear()
        cut = self._cut(trainer, module)
        self.copies.settle(module, cut.watched)
        self.held.look(trainer, module)
        return cut

    def _decide(
        self, trainer: pl.Trainer, module: pl.LightningModule, fraction: float, attempt: Callable[[PruningPlan], None]
    ) -> tuple[Structure, Decision]:
        """Score on every process, average the scores, decide alike on all processes, and try the plan.

        Where the allocation is "auto" and the plan cannot be applied, groups of one size keep equal widths.
        """
        self._ahead = None
        pending, self.pending = self.pending, None
        self.check_ahead(trainer, module)  # a stream gives example inputs only once training runs
        structure = on_all_ranks(lambda: self.structure(module))
        if pending is not None and pending.fraction == fraction:
            on_all_ranks(lambda: attempt(pending.plan))
            return structure, Decision(pending.plan, pending.scores, latency=pending.latency)
        scores = mean_over_ranks(on_all_ranks(lambda: self.decider.score(trainer, module, structure)))
        allocation = self.options.allocation
        decision = self.decider.alike(trainer, module, structure, scores, allocation, fraction)
        try:
            on_all_ranks(lambda: attempt(decision.plan))
        except Exception as error:
            if not isinstance(allocation, Auto) or not failed_only_by(error, SurgeryError, PlanError):
                raise
            log.warning("Groups of one size keep equal widths, which a step of the fit needs")
            log.debug("The plan cannot be applied: %s", error)
            decision = self.decider.alike(trainer, module, structure, scores, Uniform(equal=True), fraction)
            on_all_ranks(lambda: attempt(decision.plan))
        return structure, decision

    def _cut(self, trainer: pl.Trainer, module: pl.LightningModule) -> FitCut:
        return FitCut(trainer, module, self.located, self.copies, self.held)

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
            **self.held.state_dict(),
            "latency": self.latency_ratio,
            "announced": None if self.pending is None else self.pending.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: from a checkpoint.
        """
        unpruned, pending = state["original"], state.get("announced")
        self.decider.unpruned = None if unpruned is None else UnprunedStats.from_dict(unpruned)
        self.copies.load_state_dict(state)
        self.held.load_state_dict(state)
        self.decider.latency_ratio = state.get("latency", 1.0)
        self.pending = None if pending is None else PendingEvent.from_dict(pending)
