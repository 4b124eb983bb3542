"""Refuse models and inputs on the meta device, which have shapes only, where values are needed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from infoprune.errors import ConfigurationError


def without_values(model: nn.Module) -> list[str]:
    """Return the names of a model's parameters and buffers that are on the meta device; tied ones by each name.

    Args:
        model: the model.
    """
    return [
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
        if tensor is not None and tensor.is_meta
    ]


def no_values(name: str) -> ConfigurationError:
    """Return the error for a tensor that should have values.

    Args:
        name: its name in the model.
    """
    return ConfigurationError(
        f"{name} is on the meta device, where it has a shape and no values: build the model on a real device, or call "
        "model.to_empty(device=...) and load its weights, before it is pruned"
    )


def check_values(model: nn.Module, inputs: Any, *, runs: bool) -> None:
    """Refuse a model of which a part has no values, and inputs without values for a model that is to run on them.

    A model that is on the meta device as a whole can be pruned, by a criterion that reads no weights and without data.

    Args:
        model: the model.
        inputs: its example inputs, in any form.
        runs: whether the model is to run on real tensors.

    Raises:
        ConfigurationError: names the tensor and what to do.

    Example:
        >>> import torch
        >>> check_values(nn.Linear(2, 3), torch.zeros(1, 2), runs=True)
        >>> check_values(nn.Linear(2, 3, device="meta"), torch.zeros(1, 2), runs=False)
    """
    empty = without_values(model)
    if empty and (runs or not all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))):
        raise no_values(empty[0])
    if not empty:
        check_input_values(inputs)


def check_input_values(inputs: Any) -> None:
    """Refuse example inputs on the meta device.

    Args:
        inputs: the example inputs, in any form.

    Raises:
        ConfigurationError: gives a call that makes real ones.
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_meta:
            shape = ", ".join(map(str, leaf.shape))
            raise ConfigurationError(
                "the example inputs are on the meta device, where they have a shape and no values: give "
                f"torch.zeros({shape}) in place of them"
            )
