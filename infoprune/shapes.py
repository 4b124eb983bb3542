"""Read and write example inputs as shapes, for configurations, command lines and records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from infoprune.errors import ConfigurationError
from infoprune.inputs import Examples, holds_entries
from infoprune.structure.tracing.examples import count_examples

if TYPE_CHECKING:
    from infoprune.inputs import Inputs


def from_shapes(value: Any) -> Inputs:
    """Read the option ``example_inputs``: tensors as they are, shapes (from a config file) as zeros of that shape.

    Args:
        value: tensors, shapes, or a list or dict of them.

    Raises:
        ConfigurationError: it is neither.

    >>> from_shapes([1, 3, 8, 8]).shape
    torch.Size([1, 3, 8, 8])
    >>> [t.shape for t in from_shapes([[1, 3], [1, 5]])]
    [torch.Size([1, 3]), torch.Size([1, 5])]
    """
    if isinstance(value, Mapping):
        return {str(key): _tensor(item) for key, item in value.items()}
    several = isinstance(value, tuple) or (isinstance(value, list) and value and all(map(_is_shape, value)))
    inputs: Inputs = tuple(map(_tensor, value)) if several and not _is_shape(value) else _tensor(value)
    return inputs


def shapes_of(inputs: Inputs | None) -> Any:
    """Write example inputs as shapes; None where one of them is no tensor.

    Args:
        inputs: the example inputs.

    Example:
        >>> shapes_of({"x": torch.zeros(1, 3)}), shapes_of((torch.zeros(2, 1), torch.zeros(2))), shapes_of((1, 2))
        ({'x': [1, 3]}, [[2, 1], [2]], None)
    """
    if isinstance(inputs, Tensor):
        return list(inputs.shape)
    if not isinstance(inputs, (Mapping, tuple)):
        return None
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        return None
    shapes = [list(part.shape) for part in parts]
    return dict(zip(inputs, shapes, strict=True)) if isinstance(inputs, Mapping) else shapes


def random_inputs(shape: Any) -> Inputs:
    """Return random numbers of a shape, of several shapes, or of shapes by name; the same each time.

    Args:
        shape: a shape, a list of shapes, or shapes by name.

    Example:
        >>> {name: tensor.shape for name, tensor in random_inputs({"x": [1, 3]}).items()}
        {'x': torch.Size([1, 3])}
    """
    generator = torch.Generator().manual_seed(0)
    inputs: Inputs = tree_map_only(
        Tensor, lambda zeros: torch.randn(zeros.shape, generator=generator), from_shapes(shape)
    )
    return inputs


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples in inputs, see :func:`infoprune.structure.tracing.examples.count_examples`.

    Args:
        inputs: the example inputs.
    """
    return count_examples(inputs)


def with_batch(inputs: Inputs, size: int) -> Inputs:
    """Return inputs with another batch size: the examples, repeated.

    Args:
        inputs: the example inputs.
        size: the new number of examples.

    Example:
        >>> with_batch(torch.arange(2)[:, None], 5).flatten().tolist()
        [0, 1, 0, 1, 0]
        >>> len(with_batch(([torch.zeros(3, 8, 8)],), 4)[0])
        4
    """
    if isinstance(inputs, Examples):
        return Examples(*(with_batch(one, size) for one in inputs.inputs))
    old = batch_size(inputs)

    def repeat(value: Any) -> Any:
        if holds_entries(value):
            return [value[i % old] for i in range(size)] if len(value) == old else value
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != old:
            return value
        return value.repeat(-(-size // old), *[1] * (value.dim() - 1))[:size]

    def in_argument(argument: Any) -> Any:
        return tree_map(repeat, argument, is_leaf=holds_entries)

    if isinstance(inputs, Mapping):
        return {name: in_argument(argument) for name, argument in inputs.items()}
    return tuple(map(in_argument, inputs)) if isinstance(inputs, (list, tuple)) else in_argument(inputs)


def _tensor(value: Any) -> Any:
    if _is_shape(value):
        return torch.zeros(tuple(value))
    if isinstance(value, (str, bytes)):
        raise ConfigurationError(f"example_inputs: {value!r} is neither a tensor nor a shape such as [1, 3, 32, 32]")
    return value


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(size) is int for size in value)
