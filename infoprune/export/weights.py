"""Export plain weights, with a record of the structure that they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infoprune.export.program import check_target, written
from infoprune.inputs import Inputs
from infoprune.shapes import shapes_of
from infoprune.structure import plan_of, trace
from infoprune.version import __version__

FORMAT = 1
"""Number of the layout of the structure record."""


def to_weights(model: nn.Module, inputs: Inputs, weights: str | Path, structure: str | Path) -> None:
    """Write a model's weights as a plain state dict, and beside them what shape it has and how it came to it.

    Args:
        model: the model.
        inputs: example inputs.
        weights: the file for the state dict: tensors only, for any PyTorch.
        structure: the JSON file for the structure record: class, input shapes, cost, layers with their shapes, and
            the plan that leads from the unpruned architecture to them.
    """
    check_target(weights)
    check_target(structure)
    record = structure_record(model, inputs)
    with written(weights) as tensors, written(structure) as text:
        torch.save({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, tensors)
        text.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def structure_record(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Return what another program needs to know of a pruned model: primitives only.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> [(layer["name"], layer["shape"]) for layer in structure_record(net, torch.zeros(1, 3, 8, 8))["layers"]]
    [('0', [4, 3, 3, 3])]
    """
    structure = trace(model, inputs)
    cost, costs = structure.cost(), structure.layer_costs()
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "weight": layer.weight,
            "shape": list(structure.shapes[layer.weight]),
            "filters": structure.shapes[layer.weight][layer.dim],
            "macs": costs[layer.name].macs if layer.name in costs else 0,
        }
        for layer in structure.layers
    ]
    return {
        "format": FORMAT,
        "infoprune": __version__,
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "input_shape": shapes_of(inputs),
        "macs": cost.macs,
        "params": cost.params,
        "layers": layers,
        "plan": plan_of(model).to_dict(),
    }
