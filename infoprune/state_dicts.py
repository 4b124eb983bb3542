"""Check whether a state dict can be loaded into a model that is cut by a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery.history import first_shapes
from infoprune.structure.tensors import owned_tensors


def shapes_after(model: nn.Module, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """Return the shape that each tensor in a model's ``state_dict()`` has after a plan for its architecture.

    Tensors with several names (tied weights, a module that is registered twice) are there under each of them. Left out
    is what the module computes for its state dict, which has no shape of its own.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        >>> net[2].weight = net[1].weight
        >>> plan = PruningPlan({"1.weight": {0: (1,)}}, {"1.weight": (4, 4)})
        >>> shapes_after(net, plan)["2.weight"]
        (3, 4)
    """
    names = {id(entry.tensor): name for name, entry in owned_tensors(model).items()}
    first = first_shapes(model)
    keys = {key: names.get(id(tensor)) for key, tensor in model.state_dict(keep_vars=True).items()}
    return {
        key: plan.shape_after(name) if name in plan.shapes else first[name]
        for key, name in keys.items()
        if name is not None
    }


def renamed(plan: PruningPlan, names: Mapping[str, str]) -> PruningPlan:
    """Return a plan by other names.

    Args:
        plan: the plan.
        names: old name of a tensor -> new name. Modules are renamed as the tensors in them.

    Example:
        >>> plan = PruningPlan({"model.weight": {0: (1,)}}, {"model.weight": (4, 3)}, {"model.width": (4, 3)})
        >>> new = renamed(plan, {"model.weight": "net.weight"})
        >>> list(new.removed), dict(new.attributes)
        (['net.weight'], {'net.width': (4, 3)})
    """

    def of_part(path: str) -> str:
        owner, _, key = path.rpartition(".")
        for old, new in names.items():
            rest = old.removeprefix(f"{owner}.")
            if rest != old and new.endswith(f".{rest}"):
                return f"{new.removesuffix(rest)}{key}"
        return path

    return PruningPlan(
        {names.get(name, name): dims for name, dims in plan.removed.items()},
        {names.get(name, name): shape for name, shape in plan.shapes.items()},
        {of_part(path): values for path, values in plan.attributes.items()},
        tuple(of_part(path) for path in plan.caches),
    )


def without_late(model: nn.Module, plan: PruningPlan, incoming: Mapping[str, tuple[int, ...]]) -> PruningPlan:
    """Return a plan without the tensors that a fit has added and this model does not have, or not yet.

    PyTorch has its own words for them, or passes over them. Where the model has no tensor of the plan, or lacks others
    of the same shape, it is of another architecture or has other names: then the plan is returned as it is.

    Args:
        model: the architecture.
        plan: as a checkpoint tells it.
        incoming: name and shape of the tensors that are to be loaded.
    """
    first = shapes_after(model, PruningPlan())
    late = plan.shapes.keys() - first_shapes(model).keys()
    lacking = {shape for key, shape in first.items() if key not in incoming}
    is_other = late == plan.shapes.keys() or lacking & {plan.shapes[name] for name in late}
    return plan if is_other else without(plan, late)


def without(plan: PruningPlan, names: Collection[str]) -> PruningPlan:
    """Return a plan that leaves some tensors alone, and the numbers and caches of modules that hold only such.

    Args:
        plan: the plan.
        names: of the tensors.

    Example:
        >>> plan = PruningPlan({"a.w": {0: (1,)}, "b": {0: (1,)}}, {"a.w": (4, 3), "b": (4,)}, {"a.width": (4, 3)})
        >>> list(without(plan, ["a.w"]).removed), dict(without(plan, ["a.w"]).attributes)
        (['b'], {})
    """
    if not names:
        return plan
    rest = [name for name in plan.shapes if name not in names]

    def stays(path: str) -> bool:
        prefix = path.rpartition(".")[0] + "."
        return not any(name.startswith(prefix) for name in names) or any(name.startswith(prefix) for name in rest)

    return PruningPlan(
        {name: plan.removed[name] for name in rest if name in plan.removed},
        {name: plan.shapes[name] for name in rest},
        {path: values for path, values in plan.attributes.items() if stays(path)},
        tuple(path for path in plan.caches if stays(path)),
    )


def cut_already(model: nn.Module, plan: PruningPlan) -> list[str]:
    """Return the tensors that a model has in the shape that a plan leaves of them, without having been cut.

    Code of the model has made them so, to load a checkpoint into them. PyTorch's own layers are made as a whole.

    Args:
        model: the architecture, pruned or not.
        plan: for it.
    """
    first = first_shapes(model)
    return [
        name
        for name, entry in owned_tensors(model).items()
        if name in plan.shapes
        and first[name] == plan.shape_after(name) != plan.shapes[name]
        and not type(entry.owners[0][0]).__module__.startswith("torch.nn.")
    ]


def difference(model: nn.Module, plan: PruningPlan, state: Mapping[str, Any]) -> str:
    """Return what is wrong with the first entry that a model cut by a plan could not load, or an empty string.

    Args:
        model: the unpruned architecture.
        plan: what it has lost.
        state: the state dict that is to be loaded.
    """
    own, shapes = model.state_dict(), shapes_after(model, plan)
    for key, tensor in own.items():
        if key not in state:
            return f"it has no {key}"
        if not isinstance(tensor, Tensor):
            continue
        given = state[key]
        if not isinstance(given, Tensor):
            return f"{key} is a {type(given).__name__}, not a tensor"
        wanted = shapes.get(key)
        if wanted is not None and tuple(given.shape) != wanted:
            return f"{key} has shape {tuple(given.shape)} in the file, the model needs {wanted}"
        if _kind(given, tensor) != _kind(tensor, tensor):
            return f"{key} is {_kind(given, tensor)} in the file, the model needs {_kind(tensor, tensor)}"
    extra = next((key for key in state if key not in own), None)
    return "" if extra is None else f"the model has no {extra!r:.200}"


def _kind(tensor: Tensor, like: Tensor) -> str:
    """Describe the properties of a tensor that decide whether its values can be copied into another."""
    if tensor.is_meta:
        return "a tensor without values"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"a {'quantized' if tensor.is_quantized else tensor.layout} tensor"
    return "complex" if tensor.is_complex() and not like.is_complex() else "a plain tensor"
