"""`HeldCopies`: copies of the model outside of its registered modules, in callbacks and plain attributes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from infoprune.callbacks.engine.copies import fingerprint
from infoprune.callbacks.engine.held_match import Held, HeldTensors, Originals, compared_tensors, is_compared
from infoprune.callbacks.engine.met_weights import MetWeights
from infoprune.distributed import all_or_none
from infoprune.structure import PruningPlan
from infoprune.structure.surgery.held import own_attributes
from infoprune.structure.surgery.optimizer_state import parts_of

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)

DEPTH = 4
"""Copies are looked for so deep within objects that hold objects."""

LARGEST = 10_000
"""Containers of more items are not looked into."""

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "logging", "infoprune")
"""Objects of these packages are not looked into."""


class HeldCopies:
    """Decide which tensors outside of the model are cut with it.

    A module, a dict or a list of tensors that a callback or a plain attribute of the model holds follows a cut
    if it has the names and shapes of what is cut, and **if training updates it**. Its values are compared when
    training starts, before the first two batches of each epoch, at the end of each epoch and at the event. What the
    training step compares with the model's weights, element by element, follows as well, since a step cannot compare
    other shapes. All else stays whole: records of the first weights, teachers, and what has not seen a step of the
    fit. The model's own parameters in such a dict or list are replaced by the new ones. The callbacks of infoprune are
    left alone: Distillation keeps its teacher.

    Attributes:
        whole: places of the copies that the last call of `following` has left whole.
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}  # place -> fingerprint at the first call
        self._updated: set[str] = set()
        self.whole: list[str] = []

    def look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Record which values have changed since the first call, and which are new; a collective call.

        Args:
            trainer: the Trainer.
            module: its LightningModule.

        Raises:
            ProcessError: another process failed; the message is its error.
        """
        with all_or_none():
            for place, value in _candidates(trainer, module):
                now = _fingerprint(value)
                if now is not None and self._seen.setdefault(place, now) != now:
                    self._updated.add(place)

    def following(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        plan: PruningPlan,
        met: MetWeights,
        undecided: bool = False,
    ) -> list[Held]:
        """Return the copies that follow a plan, as far as is known since the last `look`.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            plan: what is removed, by the LightningModule's names.
            met: the tensors that the training step compares with weights, which follow too.
            undecided: also those that training may yet update.
        """
        self.whole = []
        originals = Originals(module, plan)
        found: dict[int, Held] = {}  # by identity, since several places may hold the same
        for (part, name), parameter in met.attributes.items():
            found[id(getattr(part, name))] = HeldTensors(vars(part), {name: parameter}, holds_originals=False)
        for place, value in _candidates(trainer, module):
            held = compared_tensors(value, met.memory) or originals.match(value)
            if held is None or id(value) in found:
                continue
            if undecided or held.holds_originals or place in self._updated or is_compared(held, met.memory):
                found[id(value)] = held
            else:
                self.whole.append(place)
        return list(found.values())

    def log_whole(self, trainer: pl.Trainer) -> None:
        """Log which copies the last call of `following` has left whole.

        Args:
            trainer: the Trainer.
        """
        level = logging.INFO if trainer.global_step else logging.WARNING  # nothing could have changed it yet
        for place in self.whole:
            log.log(level, "%s has the shapes of the model and stays whole: no training has changed it", place)

    def state_dict(self) -> list[str]:
        """Return what a resumed fit needs."""
        return sorted(self._updated)

    def load_state_dict(self, updated: list[str]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            updated: As read from a checkpoint.
        """
        self._updated = set(updated)


def _candidates(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[tuple[str, Any]]:
    """Yield the modules, dicts and lists outside of the model that callbacks and attributes of it lead to.

    What several places hold is yielded for each, since a resumed run may have fewer of them.
    """
    registered = {id(part) for part in module.modules()}
    seen = {id(trainer)}
    roots: list[tuple[str, Any]] = []
    for number, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        if _library(callback) != "infoprune":
            # The copy of Lightning's WeightAveraging always follows, see `averaged_copies`.
            own = {name: value for name, value in vars(callback).items() if name != "_average_model"}
            roots += [(f"{type(callback).__name__} {number}.{name}", value) for name, value in own.items()]
    roots += [(f"{type(part).__name__}.{name}", value) for part, name, value in own_attributes(module)]
    for place, value in roots:
        yield from ((where, found) for where, found in _walk(place, value, seen) if id(found) not in registered)


def _walk(place: str, value: Any, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the modules, dicts and lists in a value, from outside to inside."""
    if isinstance(value, Tensor | str | bytes | int | float | type(None)) or depth > DEPTH:
        return
    if isinstance(value, nn.Module):
        yield place, value
        return
    if isinstance(value, Collection):
        if is_foreign(value) or len(value) > LARGEST:
            return
        if isinstance(value, dict | list):
            yield place, value
    elif is_foreign(value):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, part in parts_of(value):
        yield from _walk(f"{place}[{key!r:.40}]", part, seen, depth + 1)


def is_foreign(value: Any) -> bool:
    """Return whether a value is not to be looked into: an object of a library, or a container of another package.

    Args:
        value: what a callback or an attribute holds.
    """
    if isinstance(value, Collection):  # to iterate over another package's container may run any code
        return _library(value) not in ("builtins", "collections")
    return _library(value) in LIBRARIES


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _fingerprint(value: Any) -> float | None:
    """Return a number that changes when the tensors in a module, dict or list do; None if there are none."""
    if isinstance(value, nn.Module):
        return fingerprint(value.parameters())
    tensors = [item for item in (value.values() if isinstance(value, dict) else value) if isinstance(item, Tensor)]
    return fingerprint(tensors) if tensors else None
