"""Find the tensors that a training step compares with the model's weights, as penalties on their change do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infoprune.callbacks.engine.copies import with_followers
from infoprune.callbacks.engine.written_storages import storage_of
from infoprune.structure import PruningPlan

_COPIES = {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default}


@dataclass(frozen=True)
class MetWeights:
    """Tensors that meet parameters of a LightningModule, element by element.

    Attributes:
        own: name of a parameter or buffer of the module -> name of the parameter that it meets.
        attributes: module, name of an attribute that holds one tensor -> name of the parameter.
        memory: address of a tensor's memory -> name of the parameter.
        read: addresses of the memory of all tensors that the step reads.
        used: names of the module's parameters and buffers among them.
    """

    own: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[tuple[nn.Module, str], str] = field(default_factory=dict)
    memory: Mapping[int, str] = field(default_factory=dict)
    read: Set[int] = frozenset()
    used: Set[str] = frozenset()

    def meets(self, path: str) -> bool:
        """Return whether a parameter or buffer of a part of the module meets a parameter elsewhere.

        Args:
            path: path of the part.
        """
        return any(name.startswith(f"{path}.") and not other.startswith(f"{path}.") for name, other in self.own.items())


class WeightMeetings(TorchDispatchMode):
    """Record which tensors are operands of one element-wise operator with a parameter, of the same shape.

    What such operators make of a parameter counts as the parameter: in ``importance * (weight - old) ** 2`` the
    parameter meets ``old`` and ``importance``.

    Args:
        parameters: names and parameters; of one name there may be several, as the code that runs holds them.

    Example:
        >>> weight, old, importance = nn.Parameter(torch.ones(3)), torch.zeros(3), torch.ones(3)
        >>> with WeightMeetings([("weight", weight)]) as meetings:
        ...     loss = (importance * (weight - old) ** 2).sum()
        >>> [meetings.found[storage_of(tensor)] for tensor in (old, importance)]
        ['weight', 'weight']
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.found: dict[int, str] = {}
        self.read: set[int] = set()
        self._standing = {storage_of(tensor): (name, tensor.shape) for name, tensor in parameters}
        self._alive: list[torch.UntypedStorage] = []  # so that no other tensor takes their memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.read.update(map(storage_of, _tensors([args, kwargs])))
        if torch.Tag.pointwise in func.tags or func in _COPIES:
            self._meet(_tensors([args, kwargs]), _tensors(result))
        elif func.__name__.startswith("_foreach_"):
            lists = [value for value in [*args, result] if isinstance(value, list | tuple)]
            for operands in zip(*lists, strict=False):
                self._meet(_tensors(operands), _tensors(operands))
        return result

    def _meet(self, operands: list[Tensor], results: list[Tensor]) -> None:
        known = (self._standing.get(storage_of(operand)) for operand in operands)
        met = next((entry for entry in known if entry is not None), None)
        if met is None:
            return
        name, shape = met
        for tensor in operands:
            if tensor.shape == shape and storage_of(tensor) not in self._standing:
                self.found[storage_of(tensor)] = name
                self._alive.append(tensor.untyped_storage())
        for tensor in results:
            if tensor.shape == shape:
                self._standing.setdefault(storage_of(tensor), met)
                self._alive.append(tensor.untyped_storage())

    def summary(self, module: nn.Module, own: Mapping[str, Tensor]) -> MetWeights:
        """Return what was found, by name where there is one.

        Args:
            module: the module whose code ran.
            own: name -> parameter or buffer, as the code held it.
        """
        names = {name: self.found[storage_of(t)] for name, t in own.items() if storage_of(t) in self.found}
        attributes = {
            (part, key): self.found[storage_of(value)]
            for part in module.modules()
            for key, value in vars(part).items()
            if isinstance(value, Tensor) and storage_of(value) in self.found
        }
        used = frozenset(name for name, tensor in own.items() if storage_of(tensor) in self.read)
        return MetWeights(names, attributes, dict(self.found), frozenset(self.read), used)


def with_compared(module: nn.Module, plan: PruningPlan, met: Mapping[str, str]) -> PruningPlan:
    """Return a plan under which what meets a parameter loses what that loses, unless the plan cuts it otherwise.

    Where a part has the shapes of the part whose parameters it meets, all of it follows, buffers and sizes included.

    Args:
        module: the LightningModule.
        plan: what is removed, by its names.
        met: name of a parameter or buffer -> name of the parameter that it meets.

    Example:
        >>> net = nn.Module()
        >>> net.layer = nn.Linear(2, 3)
        >>> net.register_buffer("old", torch.zeros(3, 2))
        >>> plan = PruningPlan({"layer.weight": {0: (1,)}}, {"layer.weight": (3, 2)})
        >>> dict(with_compared(net, plan, {"old": "layer.weight"}).removed["old"])
        {0: (1,)}
    """
    new = {name: other for name, other in met.items() if _is_cut(plan, other) and not _is_cut(plan, name)}
    plan = with_followers(plan, _compared_parts(module, new))
    new = {name: other for name, other in new.items() if not _is_cut(plan, name)}
    removed = {**plan.removed, **{name: plan.removed[other] for name, other in new.items()}}
    shapes = {**plan.shapes, **{name: plan.shapes[other] for name, other in new.items()}}
    return PruningPlan(removed, shapes, plan.attributes, plan.caches)


def _is_cut(plan: PruningPlan, name: str) -> bool:
    return any(plan.removed.get(name, {}).values())


def _compared_parts(module: nn.Module, met: Mapping[str, str]) -> dict[str, str]:
    """Return the parts that have the shapes of the parts whose parameters they meet: path -> path of the other."""
    parts = dict(module.named_modules())
    pairs = {pair for pair in (_stems(name, other) for name, other in met.items()) if pair is not None}
    return {path: other for path, other in sorted(pairs) if _shapes(parts[path]) == _shapes(parts[other])}


def _stems(name: str, other: str) -> tuple[str, str] | None:
    """Return the paths of the parts in which two tensors have the same name; None if they have none.

    >>> _stems("start.0.weight", "model.0.weight"), _stems("old", "model.0.weight")
    (('start', 'model'), None)
    """
    first, second = name.split("."), other.split(".")
    depth = len(first)
    while first and second and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return (".".join(first), ".".join(second)) if first and second and len(first) < depth else None


def _shapes(part: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in part.named_parameters()}


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and storage_of(leaf)]
