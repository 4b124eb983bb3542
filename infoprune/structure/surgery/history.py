"""Record in each layer what it has lost since it was built.

So a model that was pruned in several events, copied, pickled or taken apart can always tell the plan that leads from
its architecture to its shape, and can be given its first shape back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.structure.plan import PruningPlan, part_of
from infoprune.structure.surgery.attributes import number
from infoprune.structure.tensors import OwnedTensor, owned_tensors

KEY = "_infoprune_history"


@dataclass
class History:
    """The indices that one module has lost.

    Attributes:
        plan: all cuts of its own tensors, by their short names, and of its own numbers.
        attributes: every number that was rewritten, as it was at first.
        children: the histories of its children, should one be replaced by a module with the same tensors.
    """

    plan: PruningPlan = field(default_factory=PruningPlan)
    attributes: dict[str, Any] = field(default_factory=dict)
    children: dict[str, History] = field(default_factory=dict)


def remember(
    model: nn.Module,
    plan: PruningPlan,
    owned: Mapping[str, OwnedTensor],
    old_values: Sequence[tuple[nn.Module, str, Any]],
) -> None:
    """Record a plan that was applied in the modules that it has cut.

    Args:
        model: the model that was cut.
        plan: what went.
        owned: the model's tensors before the cut.
        old_values: the rewritten attributes with the values that they had.
    """
    modules = list(model.modules())
    _inherit(modules)
    # A tensor that several modules own is noted in each, by the name that the module has for it.
    lost: dict[nn.Module, dict[str, str]] = {}
    for name in plan.removed:
        for module, key in owned[name].owners:
            history = _history_of(module)
            if key in history.plan.shapes and history.plan.shape_after(key) != plan.shapes[name]:
                history.plan = _without(history.plan, key)  # other code has replaced the tensor since
            lost.setdefault(module, {})[key] = name
    for module, keys in lost.items():
        history = _history_of(module)
        history.plan = history.plan.then(part_of(plan, keys))
    for module, key, value in old_values:
        history = _history_of(module)
        # The first value stays: it belongs to the unpruned model.
        history.attributes = {key: value} | history.attributes
    for path, values in plan.attributes.items():
        owner, _, key = path.rpartition(".")
        history = _history_of(model.get_submodule(owner))
        history.plan = history.plan.then(PruningPlan(attributes={key: values}))
    for path in plan.caches:
        owner, _, key = path.rpartition(".")
        # A path that no longer names a submodule is passed over.
        for module in (module for name, module in model.named_modules() if name == owner):
            history = _history_of(module)
            history.plan = history.plan.then(PruningPlan(caches=(key,)))
    for module in reversed(modules):  # children before their parents
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        known = {name: child.__dict__[KEY] for name, child in children if KEY in child.__dict__}
        if known:
            _history_of(module).children = known


def note(model: nn.Module, plan: PruningPlan, names: Iterable[str]) -> None:
    """Record what tensors lack that were made in the shapes that a plan leaves of them.

    Args:
        model: the model.
        plan: of the whole model.
        names: the tensors.
    """
    part = PruningPlan({name: plan.removed[name] for name in names}, {name: plan.shapes[name] for name in names})
    remember(model, part, owned_tensors(model), [])


def plan_of(model: nn.Module) -> PruningPlan:
    """Return the joined plan of all cuts made to a model, in coordinates of its architecture; empty if there were none.

    Args:
        model: Any module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> plan_of(net).is_empty
        True
    """
    if not any(KEY in module.__dict__ for module in model.modules()):
        return PruningPlan()
    _inherit(model.modules())
    removed, shapes, attributes, caches = {}, {}, {}, []
    for name, entry in owned_tensors(model).items():
        plan = _loss(entry)
        if plan is not None:
            _, key = entry.owners[0]
            removed[name], shapes[name] = plan.removed[key], plan.shapes[key]
    for prefix, module in model.named_modules():
        history = module.__dict__.get(KEY)
        caches += [f"{prefix}.{key}" if prefix else key for key in history.plan.caches] if history else []
        for key, (before, after) in history.plan.attributes.items() if history else ():
            with contextlib.suppress(AttributeError, LookupError):  # other code has removed it since
                if number(module, key) == after:
                    attributes[f"{prefix}.{key}" if prefix else key] = (before, after)
    return PruningPlan(removed, shapes, attributes, tuple(caches))


def first_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer before the first cut.

    Args:
        model: the model, pruned or not.

    Returns:
        Name of the tensor -> its shape.
    """
    _inherit(model.modules())
    shapes = {}
    for name, entry in owned_tensors(model).items():
        plan = _loss(entry)
        shapes[name] = tuple(entry.tensor.shape) if plan is None else plan.shapes[entry.owners[0][1]]
    return shapes


def regrow(model: nn.Module) -> None:
    """Restore the shapes that a model had before its first cut, so that unpruned weights can be loaded.

    Tensors that were cut become new tensors of zeros.

    Args:
        model: A pruned model, changed in place.
    """
    _inherit(model.modules())
    for entry in owned_tensors(model).values():
        plan = _loss(entry)
        if plan is not None:
            entry.replace(_zeros_like(entry, plan.shapes[entry.owners[0][1]]))
    for module in model.modules():
        history = module.__dict__.pop(KEY, None)
        for key, value in history.attributes.items() if history else ():
            setattr(module, key, value)


def _history_of(module: nn.Module) -> History:
    # Past nn.Module.__setattr__: a note is neither a parameter nor a submodule.
    if KEY not in module.__dict__:
        module.__dict__[KEY] = History()
    history: History = module.__dict__[KEY]
    return history


def _inherit(modules: Iterable[nn.Module]) -> None:
    """Copy the history of replaced modules to their replacements (BatchNorm and SyncBatchNorm)."""
    for module in modules:
        history = module.__dict__.get(KEY)
        for name, lost in history.children.items() if history else ():
            child = module._modules.get(name)
            if child is not None:
                child.__dict__.setdefault(KEY, lost)


def _loss(entry: OwnedTensor) -> PruningPlan | None:
    """Return the recorded losses of a tensor's owner; None if there are none or the owner was replaced."""
    module, key = entry.owners[0]
    history = module.__dict__.get(KEY)
    if history is None or key not in history.plan.shapes:
        return None
    plan: PruningPlan = history.plan
    return plan if plan.shape_after(key) == tuple(entry.tensor.shape) else None


def _without(plan: PruningPlan, key: str) -> PruningPlan:
    removed = {name: dims for name, dims in plan.removed.items() if name != key}
    return PruningPlan(removed, {name: plan.shapes[name] for name in removed}, plan.attributes, plan.caches)


def _zeros_like(entry: OwnedTensor, shape: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        tensor = torch.zeros(shape, dtype=entry.tensor.dtype, device=entry.tensor.device)
    if entry.is_parameter:
        return nn.Parameter(tensor, requires_grad=entry.tensor.requires_grad)
    return tensor
