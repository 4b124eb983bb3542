"""Finding in a loader's batch what the network takes, by comparison with its example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from infoprune.inputs import Arguments, Examples, Inputs, ModelCall, holds_entries


class NetworkBatches:
    """Calibration batches as ``(inputs, targets)``, with the inputs that the network's forward takes.

    Datasets yield tuples, mappings, dataclasses or nests of them. The example inputs tell which part is for the
    network: the first that has their structure, dimensions, channels and kind of numbers. All other tensors are
    targets. A batch that is one such tensor, or in which nothing is alike, is handed on as it is.

    Args:
        data: Batches as a loader yields them.
        example_inputs: What the network is traced on.

    Example:
        >>> import torch
        >>> batch = {"id": torch.tensor([7, 8]), "image": torch.zeros(2, 3, 4, 4), "label": torch.tensor([0, 1])}
        >>> inputs, targets = next(iter(NetworkBatches([batch], torch.zeros(1, 3, 8, 8))))
        >>> inputs.shape, len(targets)
        (torch.Size([2, 3, 4, 4]), 2)
    """

    def __init__(self, data: Iterable[Any], example_inputs: Inputs) -> None:
        self._data = data
        self._example = example_inputs

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            yield split_like(batch, self._example)

    @property
    def as_trained(self) -> NetworkBatches:
        """Return the same images as in training, where the data have them."""
        return NetworkBatches(self._data.as_trained, self._example)  # type: ignore[attr-defined]


def taken_by(model: nn.Module, inputs: Any) -> Any:
    """Return the image of a mapping whose names the model's forward does not take; any other inputs as they are.

    The image is the tensor of floats with the most dimensions, if there is one.

    >>> import torch
    >>> batch = {"image": torch.zeros(2, 3), "label": torch.zeros(2)}
    >>> taken_by(nn.Linear(3, 1), batch).shape
    torch.Size([2, 3])
    """
    if not isinstance(inputs, Mapping):
        return inputs
    try:
        inspect.signature(model.forward).bind(**inputs)
        return inputs
    except TypeError:
        images = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        most = max((leaf.dim() for leaf in images), default=0)
        widest = [leaf for leaf in images if leaf.dim() == most]
        return widest[0] if len(widest) == 1 else inputs


def split_like(batch: Any, example_inputs: Inputs) -> Any:
    """Return ``(inputs, targets)`` with inputs that are like the example's.

    A batch that is one such tensor, and a batch in which nothing is alike, are returned as they are.

    >>> import torch
    >>> image, label = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    >>> [len(part) for part in split_like((image, image, label), (torch.zeros(1, 3, 4, 4),) * 2)]
    [2, 2]
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = {field.name: getattr(batch, field.name) for field in fields(batch)}
    example = example_inputs.inputs[0] if isinstance(example_inputs, Examples) else example_inputs
    if isinstance(example, tuple) and len(example) == 1 and isinstance(example[0], Tensor):
        example = example[0]
    if isinstance(example, tuple) and len(example) == 1:
        example = example[0]
    if isinstance(example, list) and holds_entries(example):
        return _split_list(batch)
    if isinstance(example, (ModelCall, list)):
        return batch
    inputs = _find(batch, example)
    if inputs is None or inputs is batch:
        return batch
    taken = {id(leaf) for leaf in tree_leaves(inputs)}
    rest = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and id(leaf) not in taken]
    return inputs, (rest[0] if len(rest) == 1 else rest or None)


def _split_list(batch: Any) -> Any:
    """Return a detector's batch, its images a list in one argument, with its targets; any other batch as it is."""
    if isinstance(batch, (list, tuple)) and holds_entries(batch):
        return Arguments(([*batch],), {}), None
    if isinstance(batch, (list, tuple)) and batch and holds_entries(batch[0]):
        return Arguments(([*batch[0]],), {}), batch[1] if len(batch) > 1 else None
    return batch


def _find(batch: Any, example: Any) -> Any:
    """Return the first part of a batch that is like an example, from outside to inside."""
    found = _part_like(batch, example)
    if found is not None:
        return found
    children = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((found for child in children if (found := _find(child, example)) is not None), None)


def _part_like(value: Any, example: Any) -> Any:
    """Return as much of a value as the example has, or None where they are not alike."""
    if isinstance(example, Tensor):
        return value if isinstance(value, Tensor) and _alike(value, example) else None
    if isinstance(example, Mapping):
        # A batch may hold more than the network takes, such as labels and file names.
        if not isinstance(value, Mapping) or not all(key in value for key in example):
            return None
        parts = {key: _part_like(value[key], like) for key, like in example.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(example, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) < len(example):
            return None
        taken = [_part_like(part, like) for part, like in zip(value, example, strict=False)]
        return None if any(part is None for part in taken) else type(example)(taken)
    # Strings, numbers and None of the example match anything.
    return value


def _alike(value: Tensor, example: Tensor) -> bool:
    """Return whether both may be arguments of the same name: images of another size are alike, other channels not."""
    kinds = value.is_floating_point() == example.is_floating_point() and value.is_complex() == example.is_complex()
    return kinds and value.dim() == example.dim() and (value.dim() < 3 or value.shape[1] == example.shape[1])
