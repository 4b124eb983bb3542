"""`CopyTracker`: which copies of a network follow when it shrinks, and which stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infoprune.callbacks.engine.copies import (
    check_followers,
    find_copies,
    fingerprint,
    followers_within,
    optimized,
    unclear_copies,
)
from infoprune.callbacks.engine.met_weights import with_compared
from infoprune.callbacks.engine.tensor_copies import find_tensor_copies

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

    from infoprune.callbacks.engine.training_step import WatchedStep
    from infoprune.structure import PruningPlan


log = logging.getLogger(__name__)

ASSUMED = (
    "%s is a %s that training has neither used nor changed so far. It is cut alike, so that it can be averaged later; "
    "with FilterPruning(follow={}) it would stay whole"
)


class CopyTracker:
    """Decide during a fit which copies of parts of a LightningModule follow its cuts.

    Args:
        given: the option ``follow`` of `FilterPruning`.

    Attributes:
        follow: path of each copy that loses what its original loses -> path of the original.
        all_stay: whether no copy follows that training has not changed.
        stayed: path of each copy that stays whole, unless it was asked for -> path of its original.
    """

    def __init__(self, given: Mapping[str, str] | None) -> None:
        self.follow: dict[str, str] = dict(given or {})
        self.all_stay = given is not None and not given
        self.stayed: dict[str, str] = {}
        self._unclear: dict[str, tuple[str, float]] = {}  # copy -> its original, its fingerprint when the fit started
        self._assumed: dict[str, float] = {}  # copy that most likely follows -> its fingerprint when the fit started
        self._tensors: dict[str, str] = {}  # tensor that a module registers -> parameter that it is a copy of
        self._teachers: list[str] = []  # copies that stay as they are

    def check(self, module: pl.LightningModule) -> None:
        """Refuse copies from the option ``follow`` whose tensors differ from their originals'.

        Args:
            module: the LightningModule.
        """
        check_followers(module, self.follow)

    def find(
        self, trainer: pl.Trainer, module: pl.LightningModule, run_in_eval: set[str], watched: WatchedStep | None
    ) -> None:
        """Find the copies when a fit starts; see `find_copies`.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            run_in_eval: paths of the modules that eval mode runs.
            watched: what the training step did; None if that is not known.
        """
        copies = find_copies(trainer, module, run_in_eval, watched)
        if self.all_stay:
            self._teachers = list(copies)
            return
        self._assumed = {copy: _fingerprint(module, copy) for copy in copies.assumed.keys() - self.follow.keys()}
        self.follow = copies.following | copies.assumed | self.follow
        self._unclear = {copy: (original, _fingerprint(module, copy)) for copy, original in copies.unclear.items()}
        if watched is not None:
            trained = optimized(trainer, module)
            self._tensors = find_tensor_copies(module, trained, watched.met.used, {*copies, *self.follow})
            spoken_of = {*self.follow, *self.follow.values(), *self._unclear}
            self._teachers = [path for path in watched.teachers if path not in spoken_of]

    def settle(self, module: nn.Module, watched: WatchedStep | None = None) -> None:
        """Decide by what training has done so far, at the first event.

        Unclear copies follow if they have changed since the fit started; the others are teachers and stay. Copies that
        most likely follow stay if they have not changed and the training step runs them by now.

        Args:
            module: the LightningModule.
            watched: what a training step does at the event; None if that is not known.
        """
        stay: dict[str, str] = {}
        for copy, first in self._assumed.items():
            if _fingerprint(module, copy) != first:
                continue
            if watched is not None and watched.runs(module.get_submodule(copy)):
                stay[copy] = self.follow.pop(copy)
            else:
                log.warning(ASSUMED, copy, f"copy of {self.follow[copy]!r}")
        self._assumed = {}
        changed = {
            copy: original for copy, (original, first) in self._unclear.items() if _fingerprint(module, copy) != first
        }
        self.follow = {**self.follow, **changed}
        stay |= {copy: original for copy, original in self.unclear.items() if copy not in changed}
        self.stayed |= stay
        self._teachers += stay
        self._unclear = {}

    @property
    def unclear(self) -> dict[str, str]:
        """Return the copies of which training has to show whether they follow: path of the copy -> of its original."""
        return {copy: original for copy, (original, _) in self._unclear.items()}

    def with_tensors(self, module: nn.Module, plan: PruningPlan) -> PruningPlan:
        """Return a plan under which copies that are registered tensor by tensor lose what their originals lose.

        Args:
            module: the LightningModule.
            plan: what is removed, by its names.
        """
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        present = {copy: name for copy, name in self._tensors.items() if copy in own and name in own}
        return with_compared(
            module, plan, {copy: name for copy, name in present.items() if own[copy].shape == own[name].shape}
        )

    def check_clear(self) -> None:
        """Refuse unclear copies at an event before any training, which would show whether they change.

        Raises:
            ConfigurationError: names all of them and what to say.
        """
        if self._unclear:
            raise unclear_copies(self.unclear)

    def within(self, path: str) -> dict[str, str | None]:
        """Return the copies within the network, by the network's names.

        Args:
            path: path of the network in the LightningModule.

        Returns:
            Path of each copy -> path of its original; None: the copy stays.
        """
        prefix = f"{path}." if path else ""
        whole = [copy for copy in [*self._teachers, *self._unclear] if copy.startswith(prefix)]
        return followers_within(self.follow, path) | dict.fromkeys(copy.removeprefix(prefix) for copy in whole)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs."""
        return {
            "follow": dict(self.follow),
            "teachers": list(self._teachers),
            "unclear": {copy: list(known) for copy, known in self._unclear.items()},
            "assumed": dict(self._assumed),
            "tensors": dict(self._tensors),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: As read from a checkpoint; those of older versions lack some entries.
        """
        self.follow = dict(state.get("follow", self.follow))
        self._teachers = list(state.get("teachers", []))
        self._unclear = {copy: (known[0], known[1]) for copy, known in state.get("unclear", {}).items()}
        self._assumed = dict(state.get("assumed", {}))
        self._tensors = dict(state.get("tensors", {}))


def _fingerprint(module: nn.Module, path: str) -> float:
    return fingerprint(module.get_submodule(path).parameters())
