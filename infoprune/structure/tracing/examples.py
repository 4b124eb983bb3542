"""What a model's inputs hold: tensors, and how many examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_map_only

from infoprune.inputs import Examples, Inputs, arguments_of, holds_entries


def plain(inputs: Inputs) -> Inputs:
    """Return example inputs with plain tensors in place of those of subclasses, which wrap each result in a new object.

    Args:
        inputs: example inputs, nested in any way.
    """
    return tree_map_only(Tensor, lambda tensor: tensor if _is_plain(tensor) else tensor.as_subclass(Tensor), inputs)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) or is_traceable_wrapper_subclass(tensor)


def count_examples(inputs: Any) -> int:
    """Return the number of examples in a model's inputs.

    The first argument that holds a tensor decides. A tensor is a batch along its first dimension. A list or tuple, as
    torchvision's detectors take it, holds one example an entry where its entries are single images (channels, height,
    width) or dicts; otherwise its first entry decides, as the first value of a dict does.

    Args:
        inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or several `Examples`, whose
            numbers add up.

    Example:
        >>> import torch
        >>> batch, image = torch.zeros(4, 3, 8, 8), torch.zeros(3, 8, 8)
        >>> count_examples(batch), count_examples((batch, 1.0)), count_examples(([image, image],))
        (4, 4, 2)
        >>> count_examples({"images": (image, image, image)}), count_examples(([{"image": image}],))
        (3, 1)
    """
    if isinstance(inputs, Examples):
        return sum(map(count_examples, inputs.inputs))
    for argument in arguments_of(inputs):
        count = _in_argument(argument)
        if count is not None:
            return count
    return 1


def _in_argument(argument: Any) -> int | None:
    """Return the number of examples in one argument, None if it holds no tensor."""
    if isinstance(argument, Tensor):
        return argument.shape[0] if argument.dim() > 1 else 1
    if holds_entries(argument):
        return len(argument)
    values = argument.values() if isinstance(argument, Mapping) else argument
    if isinstance(values, (list, tuple)) or isinstance(argument, Mapping):
        return next((count for value in values if (count := _in_argument(value)) is not None), None)
    return None


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Return the tensors among example inputs.

    Args:
        inputs: the example inputs, nested in any way.
    """
    return [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]


def in_words(inputs: Inputs) -> str:
    """Describe example inputs by the shapes of their tensors.

    Args:
        inputs: the example inputs, nested in any way.
    """
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_of(inputs)]
    return f"of shape {', '.join(shapes)}" if shapes else f"of type {type(inputs).__name__}"
