"""Copies of a model outside of it: averages that callbacks and plain objects keep, as modules or as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from infoprune.callbacks.engine.copies import fingerprint
from infoprune.structure import PruningPlan, shrink
from infoprune.structure.surgery.held import own_attributes
from infoprune.structure.surgery.optimizer_state import parts_of
from infoprune.structure.surgery.slicing import cut

if TYPE_CHECKING:
    import lightning.pytorch as pl

DEPTH = 4
"""Copies are looked for so deep within objects that hold objects."""

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "logging", "infoprune")
"""Objects of these packages are not entered; only the callbacks themselves are."""


@dataclass(frozen=True)
class HeldModule:
    """A module with the tensors of a part of the model.

    Attributes:
        place: where it was found, for messages.
        module: the copy.
        path: the part of the LightningModule that it is a copy of; empty for the whole.
        of_callback: whether a callback holds it, not the model.
    """

    place: str
    module: nn.Module
    path: str
    of_callback: bool

    def shrink(self, plan: PruningPlan, replaced: Mapping[nn.Parameter, nn.Parameter], transaction: Any) -> None:
        """Remove what the plan removes from the original."""
        shrink(self.module, part_of(plan, self.path), transaction=transaction)


@dataclass(frozen=True)
class HeldTensors:
    """A dict or list of tensors that stand for tensors of the model, or are its parameters.

    Attributes:
        place: where it was found, for messages.
        container: the dict or list.
        names: key or index -> name of the tensor in the LightningModule.
    """

    place: str
    container: Any
    names: Mapping[Any, str]

    def shrink(self, plan: PruningPlan, replaced: Mapping[nn.Parameter, nn.Parameter], transaction: Any) -> None:
        """Remove what the plan removes from the originals; the model's own old parameters give way to the new."""
        for key, name in self.names.items():
            old = self.container[key]
            if old in replaced:
                self.container[key] = replaced[old]
            elif any(plan.removed.get(name, {}).values()) and tuple(old.shape) == tuple(plan.shapes[name]):
                new = cut(old, plan.removed[name])
                kind = type(old)
                self.container[key] = kind(new, old.requires_grad) if kind is nn.Parameter else new


Held = HeldModule | HeldTensors


def held_copies(trainer: pl.Trainer, module: pl.LightningModule, plan: PruningPlan) -> list[Held]:
    """Return the copies of what a plan cuts that callbacks, and plain attributes of the model, hold.

    A module is a copy if it, or a part of it, has the names and shapes of the whole model or of a part that has most of
    what is cut; a dict of tensors, if its keys are names of the model's tensors with their shapes; a list of tensors,
    if it has the shapes of all parameters in their order.
    """
    originals = _Originals(trainer, module, plan)
    matches = (originals.match(place, candidate) for place, candidate in _candidates(trainer, module))
    return [match for match in matches if match is not None]


def held_fingerprints(trainer: pl.Trainer, module: pl.LightningModule) -> MutableMapping[nn.Module, float]:
    """Return a number for each module that may be a copy, which changes when its parameters do."""
    roots = [value for _, value in _candidates(trainer, module) if isinstance(value, nn.Module)]
    return WeakKeyDictionary({part: fingerprint(part) for root in roots for part in _outer_parts(root)})


def _candidates(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[tuple[str, Any]]:
    """Yield the modules, dicts and lists outside of the model that callbacks and attributes of it lead to."""
    roots: list[tuple[str, Any]] = [
        (f"{type(callback).__name__}.{name}", value)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not type(callback).__module__.startswith("infoprune.")
        for name, value in vars(callback).items()
    ]
    roots += [(f"{type(part).__name__}.{name}", value) for part, name, value in own_attributes(module)]
    seen = {id(trainer), *(id(part) for part in module.modules())}
    for place, value in roots:
        yield from _walk(place, value, seen)


def tensor_fingerprints(module: nn.Module) -> dict[str, float]:
    """Return a number for each dict or list of tensors that a model notes, which changes when its tensors do.

    By class and attribute, since averages are often computed into a new dict or list.
    """
    return {
        f"{type(part).__name__}.{name}": sum(float(item.detach().double().sum()) for item in tensors)
        for part, name, value in own_attributes(module)
        if isinstance(value, dict | list) and (tensors := _only_tensors(value))
    }


def _only_tensors(value: dict[Any, Any] | list[Any]) -> list[Tensor]:
    """Return the items of a dict or list if all are tensors; nothing otherwise."""
    items = list(value.values()) if isinstance(value, dict) else value
    return items if all(isinstance(item, Tensor) for item in items) else []


def _outer_parts(module: nn.Module) -> list[nn.Module]:
    """Return a module, its children and theirs: an average is often kept within a wrapper."""
    children = list(module.children())
    return [module, *children, *(inner for child in children for inner in child.children())]


@contextmanager
def put_back(held: Iterable[Held]) -> Iterator[None]:
    """Give dicts and lists back what they held, should anything fail inside."""
    before = [(entry.container, entry.container.copy()) for entry in held if isinstance(entry, HeldTensors)]
    try:
        yield
    except BaseException:
        for container, content in before:
            if isinstance(container, list):
                container[:] = content
            else:
                container.update(content)
        raise


def part_of(plan: PruningPlan, path: str) -> PruningPlan:
    """Return a plan for a part of the model, by the part's own names.

    >>> plan = PruningPlan({"net.weight": {0: (1,)}}, {"net.weight": (4, 3)})
    >>> dict(part_of(plan, "net").removed)
    {'weight': {0: (1,)}}
    """
    if not path:
        return plan
    prefix = f"{path}."

    def inside(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}

    return PruningPlan(
        inside(plan.removed), inside(plan.shapes), inside(plan.attributes), tuple(inside(dict.fromkeys(plan.caches)))
    )


class _Originals:
    """The parts of a model that copies may be of, with the names and shapes of their tensors."""

    def __init__(self, trainer: pl.Trainer, module: nn.Module, plan: PruningPlan) -> None:
        self._callbacks = {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self._tensors = dict(tensors)
        self._order = {id(parameter): name for name, parameter in module.named_parameters()}
        cut_names = [name for name, dims in plan.removed.items() if any(dims.values())]
        self._parts = {
            path: part
            for path, part in module.named_modules()
            if 2 * sum(name.startswith(f"{path}." if path else "") for name in cut_names) > len(cut_names)
        }

    def match(self, place: str, value: Any) -> Held | None:
        """Return what a module, dict or list is a copy of; None if it is none."""
        if isinstance(value, nn.Module):
            matches = (self._of_module(place, part) for part in _outer_parts(value))
            return next((match for match in matches if match is not None), None)
        names = self._by_key(value) if isinstance(value, dict) else self._by_order(value)
        return HeldTensors(place, value, names) if names else None

    def _of_module(self, place: str, value: nn.Module) -> HeldModule | None:
        shapes = _shapes(value.named_parameters())
        alike = [path for path, part in self._parts.items() if shapes and _shapes(part.named_parameters()) == shapes]
        own = dict(value.named_parameters())
        nearest = min(alike, key=lambda path: self._distance(own, path), default=None)
        return (
            None if nearest is None else HeldModule(place, value, nearest, place.partition(".")[0] in self._callbacks)
        )

    def _distance(self, own: Mapping[str, Tensor], path: str) -> float:
        pairs = ((tensor, self._tensors[f"{path}.{name}" if path else name]) for name, tensor in own.items())
        return sum(float((ours.detach().to(theirs) - theirs.detach()).pow(2).sum()) for ours, theirs in pairs)

    def _by_key(self, value: Mapping[Any, Any]) -> dict[Any, str] | None:
        tensors = {key: item for key, item in value.items() if isinstance(item, Tensor)}
        if not tensors or not all(isinstance(key, str) for key in tensors):
            return None
        for path in self._parts:
            names = {key: f"{path}.{key}" if path else key for key in tensors}
            if all(n in self._tensors and self._tensors[n].shape == tensors[key].shape for key, n in names.items()):
                return names
        return None

    def _by_order(self, value: list[Any]) -> dict[Any, str] | None:
        if len(value) < 2 or not all(isinstance(item, Tensor) for item in value):
            return None
        if any(id(item) in self._order for item in value):  # the model's own parameters, not copies of them
            return {i: self._order[id(item)] for i, item in enumerate(value) if id(item) in self._order}
        shapes = [tuple(item.shape) for item in value]
        for part in self._parts.values():
            for parameters in (list(part.parameters()), [p for p in part.parameters() if p.requires_grad]):
                if [tuple(p.shape) for p in parameters] == shapes:
                    return {i: self._order[id(p)] for i, p in enumerate(parameters)}
        return None


def _shapes(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in parameters}


def _walk(place: str, value: Any, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the modules, dicts and lists in a value, from outside to inside."""
    if isinstance(value, Tensor | str | bytes | int | float | type(None)) or id(value) in seen or depth > DEPTH:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | dict | list):
        yield place, value
    elif not isinstance(value, tuple) and type(value).__module__.partition(".")[0] in LIBRARIES:
        return
    for key, part in parts_of(value):
        yield from _walk(f"{place}[{key!r:.40}]", part, seen, depth + 1)
