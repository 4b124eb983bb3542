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

    def apply(self, plan: PruningPlan) -> None:
        """Cut for good.

        Args:
            plan: what is removed, by the network's names.

        Raises:
            SurgeryError: a step would fail afterwards; nothing was changed.
        """
        self._held.look(self._trainer, self._module)
        whole, held = self._with_followers(plan)
        self._held.log_whole(self._trainer)
        shrink_in_fit(self._trainer, self._module, whole, held, self._step.again)

    def rehearse(self, plan: PruningPlan) -> None:
        """Cut, run the steps, and undo the cut.

        Copies of which training has not shown yet whether they follow stay; if the steps fail with that, they follow.

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
        plan = with_compared(module, with_followers(plan, follow), self._step.met.own)
        return plan, self._held.following(self._trainer, module, plan, self._step.met, undecided)
