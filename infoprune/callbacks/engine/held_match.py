"""Match copies outside of a model with the parts of the model that a plan cuts, and cut them alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from infoprune.callbacks.engine.written_storages import storage_of
from infoprune.checkpoint import RECORD, attach
from infoprune.structure import PruningPlan, shrink
from infoprune.structure.surgery.slicing import cut
from infoprune.structure.surgery.transaction import Transaction

Replaced = Mapping[nn.Parameter, nn.Parameter]
"""Old parameter -> new parameter, as `shrink` returns them."""


@dataclass(frozen=True)
class HeldModule:
    """A module with the tensors of a part of the model.

    Attributes:
        module: the copy.
        path: the part of the LightningModule that it is a copy of; empty for the whole.
    """

    module: nn.Module
    path: str
    is_of_the_model = False

    def shrink(self, plan: PruningPlan, replaced: Replaced, transaction: Transaction) -> None:
        """Remove what the plan removes from the original, and let the copy's state dicts tell so.

        Args:
            plan: what is removed, by the LightningModule's names.
            replaced: not used; `HeldTensors` needs it.
            transaction: undoes the change if the cut fails.
        """
        shrink(self.module, part_of(plan, self.path), transaction=transaction)
        attach(self.module)  # the project may save it in an entry of its own


@dataclass(frozen=True)
class HeldTensors:
    """A dict or list of tensors that stand for tensors of the model, or are its parameters.

    Attributes:
        container: the dict or list.
        names: key or index -> name of the tensor in the LightningModule.
        holds_originals: whether these are the model's own parameters, not copies.
        by_parameter: whether the keys are the model's own parameters.
        aliases: the LightningModule, if these are its tensors under other objects, as a ``state_dict()`` holds them.
    """

    container: Any
    names: Mapping[Any, str]
    holds_originals: bool
    by_parameter: bool = False
    aliases: nn.Module | None = None

    @property
    def is_of_the_model(self) -> bool:
        """Return whether the model's own tensors are held, or are the keys."""
        return self.holds_originals or self.by_parameter or self.aliases is not None

    def shrink(self, plan: PruningPlan, replaced: Replaced, transaction: Transaction) -> None:
        """Remove what the plan removes from the originals; replace old parameters of the model by the new ones.

        Args:
            plan: what is removed, by the LightningModule's names.
            replaced: old parameter of the model -> new one.
            transaction: undoes the change if the cut fails.
        """
        if self.by_parameter:
            content = [(replaced.get(key, key), value) for key, value in self.container.items()]
            self.container.clear()
            self.container.update(content)
        for key, name in self.names.items():
            key = replaced.get(key, key) if self.by_parameter else key
            old = self.container[key]
            if self.aliases is not None:
                self.container[key] = _tensor_of(self.aliases, name).detach()
            elif self.holds_originals:
                self.container[key] = replaced.get(old, old)
            elif any(plan.removed.get(name, {}).values()):
                new = cut(old, plan.removed[name])
                is_parameter = isinstance(old, nn.Parameter)
                self.container[key] = nn.Parameter(new, old.requires_grad) if is_parameter else new
        self._record(plan)

    def _record(self, plan: PruningPlan) -> None:
        """Let a state dict that tells what its tensors have lost tell of this cut too."""
        told = _told_by(self.container)
        if RECORD in told:
            key, name = next(iter(self.names.items()))
            part = part_of(plan, name.removesuffix(str(key)).removesuffix("."))
            told[RECORD] = {"plan": PruningPlan.from_dict(told[RECORD]["plan"]).then(part).to_dict()}


Held = HeldModule | HeldTensors


def _told_by(container: Any) -> dict[str, Any]:
    """Return the metadata of a state dict as a whole; of another container, none."""
    metadata: dict[str, Any] = getattr(container, "_metadata", {}).get("", {})
    return metadata


@contextmanager
def put_back(held: Iterable[Held]) -> Iterator[None]:
    """Restore the contents of dicts and lists if the block fails.

    Args:
        held: the copies that are to be cut.
    """
    containers = [entry.container for entry in held if isinstance(entry, HeldTensors)]
    before = [(container, container.copy(), dict(_told_by(container))) for container in containers]
    try:
        yield
    except BaseException:
        for container, content, told in before:
            _told_by(container).update(told)
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        raise


def compared_tensors(value: Any, met: Mapping[int, str]) -> HeldTensors | None:
    """Return the tensors of a dict or list that a training step compares with parameters; None if there are none.

    Args:
        value: what a callback or an attribute holds.
        met: address of a tensor's memory -> name of the parameter that it meets.
    """
    if not isinstance(value, dict | list):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    names = {key: met[storage_of(item)] for key, item in items if isinstance(item, Tensor) and storage_of(item) in met}
    return HeldTensors(value, names, holds_originals=False) if names else None


def is_compared(held: Held, met: Mapping[int, str]) -> bool:
    """Return whether a training step compares tensors of a copy with parameters.

    Args:
        held: the copy.
        met: address of a tensor's memory -> name of the parameter that it meets.
    """
    if isinstance(held, HeldTensors):
        return any(storage_of(held.container[key]) in met for key in held.names)
    return any(storage_of(parameter) in met for parameter in held.module.parameters())


def part_of(plan: PruningPlan, path: str) -> PruningPlan:
    """Return a plan for a part of the model, by the part's own names.

    Args:
        plan: a plan for the whole model.
        path: path of the part; empty for the whole.

    Example:
        >>> plan = PruningPlan({"net.weight": {0: (1,)}}, {"net.weight": (4, 3)})
        >>> dict(part_of(plan, "net").removed)
        {'weight': {0: (1,)}}
    """
    if not path:
        return plan
    prefix = f"{path}."

    def inside(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}

    caches = tuple(inside(dict.fromkeys(plan.caches)))
    return PruningPlan(inside(plan.removed), inside(plan.shapes), inside(plan.attributes), caches)


class Originals:
    """The parts of a model that may have copies: those with at least half of the tensors that a plan cuts."""

    def __init__(self, module: nn.Module, plan: PruningPlan) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._tensors: dict[str, Tensor] = {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._module = module
        places = ((name, _place(tensor)) for name, tensor in self._tensors.items())
        self._by_place = {place: name for name, place in places if place is not None}
        cut_names = [name for name, dims in plan.removed.items() if any(dims.values())]
        self._parts = {
            path: part
            for path, part in module.named_modules()
            if cut_names and 2 * sum(name.startswith(_prefix(path)) for name in cut_names) >= len(cut_names)
        }

    def match(self, value: Any) -> Held | None:
        """Match a module, dict or list with the part of the model that it is a copy of.

        A module, a child of it or one of theirs is a copy if it has the parameters of a part, by name and shape; a dict
        of tensors, if its keys are names of a part's tensors with their shapes; a list of tensors, if it has the shapes
        of a part's parameters, or of its state dict, in their order. A dict by the parameters themselves follows too.

        Args:
            value: what a callback or an attribute holds.

        Returns:
            The copy with its original; None if it is no copy.
        """
        if isinstance(value, nn.Module):
            return next(filter(None, map(self._of_module, _outer_parts(value))), None)
        tensors = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        tensors = {key: item for key, item in tensors.items() if isinstance(item, Tensor)}
        own = {key: self._names[id(item)] for key, item in tensors.items() if id(item) in self._names}
        if own:
            return HeldTensors(value, own, holds_originals=True)
        places = {key: _place(item) for key, item in tensors.items()}
        aliases = {key: self._by_place[place] for key, place in places.items() if place in self._by_place}
        if aliases:
            return HeldTensors(value, aliases, holds_originals=False, aliases=self._module)
        keyed = {key: name for key, item in tensors.items() if (name := self._by_itself(key, item)) is not None}
        if keyed:
            return HeldTensors(value, keyed, holds_originals=False, by_parameter=True)
        names = self._by_key(tensors) if isinstance(value, dict) else self._by_order(value)
        return HeldTensors(value, names, holds_originals=False) if names else None

    def _of_module(self, value: nn.Module) -> HeldModule | None:
        own = dict(value.named_parameters())
        if any(id(parameter) in self._names for parameter in own.values()):  # a wrapper of the model, no copy
            return None
        shapes = _shapes(value)
        alike = [path for path, part in self._parts.items() if shapes and _shapes(part) == shapes]
        nearest = min(alike, key=lambda path: self._distance(own, path), default=None)
        return None if nearest is None else HeldModule(value, nearest)

    def _distance(self, own: Mapping[str, Tensor], path: str) -> float:
        pairs = ((tensor, self._tensors[_prefix(path) + name]) for name, tensor in own.items())
        return sum(float((ours.detach().to(theirs) - theirs.detach()).pow(2).sum()) for ours, theirs in pairs)

    def _by_itself(self, key: Any, tensor: Tensor) -> str | None:
        """Return the name of a parameter that is a key, if the tensor has its shape."""
        name = self._names.get(id(key))
        return name if name is not None and self._has(name, tensor) else None

    def _by_key(self, tensors: Mapping[Any, Tensor]) -> dict[Any, str] | None:
        for path in self._parts:
            names = {key: f"{_prefix(path)}{key}" for key in tensors}
            if all(self._has(name, tensors[key]) for key, name in names.items()):
                return names
        return None

    def _by_order(self, value: Sequence[Any]) -> dict[Any, str] | None:
        if len(value) < 2 or not all(isinstance(item, Tensor) for item in value):
            return None
        for path, part in self._parts.items():
            trained = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
            for order in ([name for name, _ in part.named_parameters()], trained, list(part.state_dict())):
                names = [_prefix(path) + name for name in order]
                if len(names) == len(value) and all(map(self._has, names, value)):
                    return dict(enumerate(names))
        return None

    def _has(self, name: str, tensor: Tensor) -> bool:
        return name in self._tensors and self._tensors[name].shape == tensor.shape


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return where and how the numbers of a tensor lie; None if it has no numbers."""
    if is_lazy(tensor) or not storage_of(tensor):
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer."""
    path, _, key = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), key)
    return tensor


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    parameters = dict(module.named_parameters())
    return {} if any(map(is_lazy, parameters.values())) else {name: tuple(p.shape) for name, p in parameters.items()}


def _outer_parts(module: nn.Module) -> list[nn.Module]:
    """Return a module, its children and theirs: an average is often kept within a wrapper."""
    children = list(module.children())
    return [module, *children, *(inner for child in children for inner in child.children())]
