"""Check whether a state dict can be loaded into a model that is cut by a plan."""

from __future__ import annotations

from collections.abc import Mapping
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
