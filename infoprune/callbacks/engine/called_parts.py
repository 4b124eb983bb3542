"""`CalledParts`: example inputs in place of a training step that cannot be run on shapes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_map_only

from infoprune.callbacks.engine.training_step import WatchedStep
from infoprune.inputs import Inputs, ModelCall, call_model
from infoprune.structure.module_state import attributes_restored
from infoprune.structure.tensors import on_meta, owned_tensors, swapped

log = logging.getLogger(__name__)


class CalledParts(ModelCall):
    """Example inputs that run some parts of a model, each on inputs of its own.

    The outputs of the parts count as the model's outputs, so that they keep their widths.

    Args:
        paths: paths of the parts in the model.
        inputs: the example inputs of each.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> call = CalledParts(["0", "1"], [torch.zeros(1, 3), torch.zeros(1, 4)])
        >>> [tuple(output.shape) for output in call(net)]
        [(1, 4), (1, 2)]
    """

    def __init__(self, paths: Sequence[str], inputs: Sequence[Inputs]) -> None:
        self.paths = tuple(paths)
        self.inputs = list(inputs)

    @property
    def arguments(self) -> list[Any]:
        """Return what the parts are run on."""
        return self.inputs

    def __call__(self, model: nn.Module) -> Any:
        """Run the parts."""
        calls = zip(self.paths, self.inputs, strict=True)
        return [call_model(model.get_submodule(path), inputs) for path, inputs in calls]


register_pytree_node(
    CalledParts, lambda call: (call.inputs, call.paths), lambda inputs, paths: CalledParts(paths, list(inputs))
)


def called_parts(watched: WatchedStep, network: nn.Module, path: str) -> CalledParts | None:
    """Return the parts of a network that a training step calls directly, with their inputs.

    Parts without parameters are left out, and parts that do not run on shapes, such as losses that search for pairs:
    those are not pruned.

    Args:
        watched: what the training step did.
        network: the network.
        path: where the network is in the LightningModule.

    Returns:
        None if there is no such part.
    """
    prefix = f"{path}." if path else ""
    found: dict[str, Inputs] = {}
    for call in watched.calls:
        name = call.path.removeprefix(prefix)
        if call.within or call.inputs is None or not call.path.startswith(prefix) or not name or name in found:
            continue
        part = network.get_submodule(name)
        if next(part.parameters(), None) is not None and _runs_on_shapes(part, call.inputs):
            found[name] = call.inputs
    return CalledParts(list(found), list(found.values())) if found else None


def _runs_on_shapes(part: nn.Module, inputs: Inputs) -> bool:
    owned = owned_tensors(part)
    stand_ins = {name: on_meta(entry.tensor) for name, entry in owned.items()}
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    try:
        with attributes_restored(part.modules()), swapped(owned, stand_ins), torch.no_grad():
            call_model(part.eval(), shapes)
    except Exception as error:  # of the user's code
        log.debug("%s does not run on shapes: %s: %s", type(part).__name__, type(error).__name__, error)
        return False
    return True
