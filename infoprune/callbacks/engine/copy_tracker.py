"""`CopyTracker`: which copies of a network follow when it shrinks, and which stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infoprune.callbacks.engine.copies import (
    check_followers,
    find_copies,
    fingerprint,
    followers_within,
    unclear_copies,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

    from infoprune.callbacks.engine.training_step import WatchedStep


class CopyTracker:
    """Decide during a fit which copies of parts of a LightningModule follow its cuts.

    Args:
        given: the option ``follow`` of `FilterPruning`.

    Attributes:
        follow: path of each copy that loses what its original loses -> path of the original.
    """

    def __init__(self, given: Mapping[str, str] | None) -> None:
        self.follow: dict[str, str] = dict(given or {})
        self._all_stay = given is not None and not given
        self._unclear: dict[str, tuple[str, float]] = {}  # copy -> its original, its fingerprint when the fit started
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
        if self._all_stay:
            self._teachers = [*copies.following, *copies.unclear]
            return
        self.follow = copies.following | self.follow
        self._unclear = {copy: (original, _fingerprint(module, copy)) for copy, original in copies.unclear.items()}
        if watched is not None:
            spoken_of = {*self.follow, *self.follow.values(), *self._unclear}
            self._teachers = [path for path in watched.teachers if path not in spoken_of]

    def settle(self, module: nn.Module) -> None:
        """Let unclear copies follow if they have changed since the fit started; the others are teachers and stay.

        Args:
            module: the LightningModule.
        """
        changed = {
            copy: original for copy, (original, first) in self._unclear.items() if _fingerprint(module, copy) != first
        }
        self.follow = {**self.follow, **changed}
        self._teachers += [copy for copy in self._unclear if copy not in changed]
        self._unclear = {}

    @property
    def unclear(self) -> dict[str, str]:
        """Return the copies of which training has to show whether they follow: path of the copy -> of its original."""
        return {copy: original for copy, (original, _) in self._unclear.items()}

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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: As read from a checkpoint; those of older versions lack some entries.
        """
        self.follow = dict(state.get("follow", self.follow))
        self._teachers = list(state.get("teachers", []))
        self._unclear = {copy: (known[0], known[1]) for copy, known in state.get("unclear", {}).items()}


def _fingerprint(module: nn.Module, path: str) -> float:
    return fingerprint(module.get_submodule(path).parameters())
