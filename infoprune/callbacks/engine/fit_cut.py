"""`FitCut`: cut the network of a fit with all that follows it, for good or as a rehearsal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infoprune.callbacks.engine.copies import with_followers
from infoprune.callbacks.engine.copy_tracker import CopyTracker
from infoprune.callbacks.engine.held_copies import HeldCopies
from infoprune.callbacks.engine.held_match import Held
from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.met_weights import with_compared
from infoprune.callbacks.engine.surgery import in_names_of, rehearse_in_fit, shrink_in_fit
from infoprune.errors import InfopruneError
from infoprune.structure import PruningPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.engine.training_step import WatchedStep


class FitCut:
    """Cut the network of a fit, the copies of it, its optimizers and its wrapper.

    Args:
        trainer: the Trainer.
        module: its LightningModule, before the cut.
        located: where the network is.
        copies: the copies within the LightningModule.
        held: the copies outside of it.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        located: LocatedNetwork,
        copies: CopyTracker,
        held: HeldCopies,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._located = located
        self._copies = copies
        self._held = held
        self._step = located.step_check(trainer, module)

    @property
    def watched(self) -> WatchedStep | None:
        """Return what the training step did before the cut; None if that is not known."""
        return self._step.watched

    def apply(self, plan: PruningPlan) -> None:
        """Cut for good.

        Args:
            plan: what is removed, by the network's names.

        Raises:
            SurgeryError: a step would fail afterwards; nothing was changed.
        """
        whole, held = self._with_followers(plan)
        self._held.log_guesses(self._trainer)
        shrink_in_fit(self._trainer, self._module, whole, held, self._step.again)

    def rehearse(self, plan: PruningPlan) -> None:
        """Cut, run the steps, and undo the cut.

        Copies of which it is not known yet whether they follow stay; if the steps fail with that, they follow.

        Args:
            plan: what is removed, by the network's names.

        Raises:
            SurgeryError: a step fails either way.
        """
        whole, held = self._with_followers(plan)
        if whole.is_empty:
            return
        try:
            rehearse_in_fit(self._trainer, self._module, whole, held, self._step.again)
        except InfopruneError:
            if not self._held.whole and not self._copies.unclear:
                raise
            whole, held = self._with_followers(plan, undecided=True)
            rehearse_in_fit(self._trainer, self._module, whole, held, self._step.again)

    def _with_followers(self, plan: PruningPlan, undecided: bool = False) -> tuple[PruningPlan, list[Held]]:
        """Return a plan by the LightningModule's names, with the copies within it, and the copies outside of it."""
        module, path = self._module, self._located.path
        assert path is not None
        plan = in_names_of(module, self._located.within(module), path, plan)
        follow = {**self._copies.follow, **(self._copies.unclear if undecided else {})}
        watched, assume = self._step.watched, not self._copies.all_stay
        plan = self._copies.with_tensors(module, with_followers(plan, follow))
        plan = plan if watched is None else with_compared(module, plan, watched.met.own)
        return plan, self._held.following(self._trainer, module, plan, watched, assume, undecided)
