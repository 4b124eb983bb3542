"""Start from given weights: a state dict, the weights inside a Lightning checkpoint, or a pruned model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infoprune.checkpoint import adapt, plan_in
from infoprune.errors import CheckpointError
from infoprune.marker import is_marker
from infoprune.state_dicts import shapes_after
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery.history import first_shapes
from infoprune.weight_files import is_safetensors, read_safetensors, read_torch


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights of ``model`` from a file; all of them, or none when they do not fit.

    The file holds a state dict, or a checkpoint with one under ``state_dict``. Names may carry a common prefix such as
    ``module.`` (DistributedDataParallel) or ``model.`` (a LightningModule's attribute). Only tensors and plain Python
    values are read (``weights_only``).

    A file that tells how its model was pruned (of `infoprune.save`, or a checkpoint of a pruned fit) brings the model
    to that shape first.

    Args:
        model: The network; unchanged after an error.
        path: The file.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another architecture; the message names the
            first layer that differs.
    """
    content = _read(Path(path))
    prefix, state = _without_prefix(_weights_in(content, path), model)
    plan = plan_in(content, prefix)
    own = model.state_dict()
    for name, value in own.items():
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = value  # weights from before torch 0.4 have none, and inference needs none
    difference = _first_difference(own, state, _shapes(model, plan))
    if difference:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {difference}. Build the model that the weights were made "
            "with (depth, width, number of classes), or give other weights"
        )
    if not plan.is_empty:
        adapt(model, plan)
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; init_from takes the path of a state dict or checkpoint")
    if is_safetensors(path):
        state, record = read_safetensors(path)
        return {**record, "state_dict": state}
    return read_torch(path)


def _weights_in(content: Any, path: str | Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no state dict; save model.state_dict()")
    # torch.compile(net) inserts this name; it says nothing about the architecture
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and not is_marker(key)}
    return {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}


def _without_prefix(state: dict[str, Tensor], model: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix that matches most names of the model, and the entries under it without it."""
    own = list(model.state_dict())
    prefixes = {key[: -len(own[0])] for key in state if key == own[0] or key.endswith("." + own[0])} if own else set()
    if not prefixes:
        return "", state
    best = max(sorted(prefixes, key=len), key=lambda prefix: sum(prefix + name in state for name in own))
    return best, {key[len(best) :]: value for key, value in state.items() if key.startswith(best)}


def _shapes(model: nn.Module, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """Return the shapes that weights must have: after the plan that came with them, else those of the model."""
    if plan.is_empty:
        return {}
    first = first_shapes(model)
    known = [name for name in plan.shapes if first.get(name) == plan.shapes[name]]
    return shapes_after(model, PruningPlan({n: plan.removed[n] for n in known}, {n: plan.shapes[n] for n in known}))


def _first_difference(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Return what is wrong with the first layer that differs, or an empty string."""
    for name, value in own.items():
        if name not in state:
            return f"layer {_layer(name)!r} is not in the file ({name} missing)"
        wanted = shapes.get(name, tuple(value.shape))
        if tuple(state[name].shape) != wanted:
            return (
                f"layer {_layer(name)!r} differs: {name} has shape {tuple(state[name].shape)} in the file, "
                f"{wanted} in the model"
            )
    for name in state:
        if name not in own:
            return f"layer {_layer(name)!r} is in the file, not in the model ({name})"
    return ""


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name
