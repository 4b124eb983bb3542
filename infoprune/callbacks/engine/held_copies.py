"""`HeldCopies`: copies of the model outside of its registered modules, in callbacks and plain attributes."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from infoprune.callbacks.engine.copies import fingerprint
from infoprune.callbacks.engine.copy_tracker import ASSUMED
from infoprune.callbacks.engine.held_match import Held, HeldTensors, Originals, compared_tensors, is_compared
from infoprune.callbacks.engine.met_weights import MetWeights
from infoprune.callbacks.engine.surgery import averaged_copies
from infoprune.callbacks.engine.written_storages import storage_of
from infoprune.distributed import all_or_none
from infoprune.structure import PruningPlan
from infoprune.structure.surgery.held import own_attributes
from infoprune.structure.surgery.optimizer_state import parts_of

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.engine.training_step import WatchedStep

log = logging.getLogger(__name__)

DEPTH = 4
"""Copies are looked for so deep within objects that hold objects."""

LARGEST = 10_000
"""Containers of more items are not looked into."""

ITEM = re.compile(r"\[\d+\]")
"""In the place of what a list, a tuple or a dict by numbers holds: one of several snapshots rather than an average."""

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "logging", "infoprune")
"""Objects of these packages are not looked into."""


class HeldCopies:
    """Decide which tensors outside of the model are cut with it.

    A module, a dict or a list of tensors that a callback or a plain attribute of the model holds follows a cut
    if it has the names and shapes of what is cut, and **if training updates it**. Its values are compared when
    training starts, before the first two batches of each epoch, at the end of each epoch and at the event. What the
    training step compares with the model's weights, element by element, follows as well, since a step cannot compare
    other shapes. So does PyTorch's ``AveragedModel``, and what had the model's weights when the fit started and the
    training step does not use: most likely an average that is updated later. All else stays whole: teachers, items
    of lists, which are snapshots rather, and copies that are made during the fit. The model's own parameters in
    such a dict or list are replaced by the new ones. The callbacks of infoprune are left alone: Distillation keeps
    its teacher.

    Attributes:
        whole: places of the copies that the last call of `following` has left whole.
        assumed: places of the copies that it took for averages that are updated later.
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}  # place -> fingerprint at the first call
        self._updated: set[str] = set()
        self._equal: set[str] = set()  # places of what had the weights of the model at the first call
        self._has_looked = False
        self.whole: list[str] = []
        self.assumed: list[str] = []

    def look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Record which values have changed since the first call, and which are new; a collective call.

        Args:
            trainer: the Trainer.
            module: its LightningModule.

        Raises:
            ProcessError: another process failed; the message is its error.
        """
        is_first, self._has_looked = not self._has_looked, True
        with all_or_none():
            for place, value in _candidates(trainer, module):
                now = _fingerprint(value)
                if now is None:
                    continue
                if is_first and not ITEM.search(place) and _has_weights_of(module, value):
                    self._equal.add(place)
                if self._seen.setdefault(place, now) != now:
                    self._updated.add(place)

    def following(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        plan: PruningPlan,
        watched: WatchedStep | None,
        assume: bool = True,
        undecided: bool = False,
    ) -> list[Held]:
        """Return the copies that follow a plan, as far as is known since the last `look`.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            plan: what is removed, by the LightningModule's names.
            watched: what the training step does, which tells teachers from averages; None if that is not known.
            assume: whether what is most likely an average follows.
            undecided: also all that training may yet update.
        """
        self.whole, self.assumed = [], []
        met = MetWeights() if watched is None else watched.met
        originals = Originals(module, plan)
        found: dict[int, Held] = {}  # by identity, since several places may hold the same
        for (part, name), parameter in met.attributes.items():
            found[id(getattr(part, name))] = HeldTensors(vars(part), {name: parameter}, holds_originals=False)
        for place, value in _candidates(trainer, module):
            held = compared_tensors(value, met.memory) or originals.match(value)
            if held is None or id(value) in found:
                continue
            is_updated = place in self._updated or (assume and isinstance(value, AveragedModel))
            if undecided or is_updated or held.is_of_the_model or is_compared(held, met.memory):
                found[id(value)] = held
            elif assume and place in self._equal and watched is not None and not _is_used(value, watched):
                found[id(value)] = held
                self.assumed.append(place)
            else:
                self.whole.append(place)
        return list(found.values())

    def log_guesses(self, trainer: pl.Trainer) -> None:
        """Log which copies the last call of `following` has left whole, and which it took for averages.

        Args:
            trainer: the Trainer.
        """
        for place in self.assumed:
            log.warning(ASSUMED, place, "copy of the model")
        level = logging.INFO if trainer.global_step else logging.WARNING  # nothing could have changed it yet
        for place in self.whole:
            log.log(level, "%s has the shapes of the model and stays whole: no training has changed it", place)

    def state_dict(self) -> dict[str, list[str]]:
        """Return what a resumed fit needs."""
        return {"held": sorted(self._updated), "held_equal": sorted(self._equal)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state: as read from a checkpoint; those of older versions lack some entries.
        """
        self._updated, self._equal = set(state.get("held", [])), set(state.get("held_equal", []))


def _candidates(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[tuple[str, Any]]:
    """Yield the modules, dicts and lists outside of the model that callbacks and attributes of it lead to.

    What several places hold is yielded for each, since a resumed run may have fewer of them.
    """
    registered = {id(part) for part in module.modules()}
    seen = {id(trainer)}
    roots: list[tuple[str, Any]] = []
    for number, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        if _library(callback) != "infoprune":
            roots += [(f"{type(callback).__name__} {number}.{name}", own) for name, own in vars(callback).items()]
    averages = {id(copy) for copy in averaged_copies(trainer)}  # which always follow
    roots = [(place, own) for place, own in roots if not (isinstance(own, nn.Module) and _wraps(own, averages))]
    roots += [(f"{type(part).__name__}.{name}", value) for part, name, value in own_attributes(module)]
    for place, value in roots:
        yield from ((where, found) for where, found in _walk(place, value, seen) if id(found) not in registered)


def _wraps(value: nn.Module, averages: set[int]) -> bool:
    return bool({id(value), id(getattr(value, "module", None))} & averages)


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


def _is_used(value: Any, watched: WatchedStep) -> bool:
    """Return whether a training step runs a network, or reads tensors of a dict or list."""
    if isinstance(value, nn.Module):
        return watched.runs(value)
    return any(storage_of(tensor) in watched.met.read for tensor in _tensors_of(value))


def _has_weights_of(module: nn.Module, value: Any) -> bool:
    """Return whether each weight in a module, dict or list is equal to one of a module's."""
    own = [parameter for parameter in module.parameters() if _is_weight(parameter)]
    weights = [tensor for tensor in _tensors_of(value) if _is_weight(tensor)]
    return bool(weights) and all(
        any(weight.shape == one.shape and torch.equal(weight.to(one), one) for one in own) for weight in weights
    )


def _is_weight(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and tensor.dim() > 1 and not tensor.is_meta and tensor.layout == torch.strided


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [item for item in (value.values() if isinstance(value, dict) else value) if isinstance(item, Tensor)]


def is_of_a_library(cls: type) -> bool:
    """Return whether a class is Python's own or of a library that is not looked into.

    Args:
        cls: the class.
    """
    return cls.__module__.partition(".")[0] in ("builtins", *LIBRARIES)


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _fingerprint(value: Any) -> float | None:
    """Return a number that changes when the tensors in a module, dict or list do; None if there are none."""
    tensors = _tensors_of(value)
    return fingerprint(tensors) if tensors or isinstance(value, nn.Module) else None
