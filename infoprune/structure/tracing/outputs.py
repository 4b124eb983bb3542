"""Find the tensors in any value that a forward returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infoprune.errors import TraceError
from infoprune.structure.labels.tensor_labels import TensorLabels

_OPAQUE = (
    *(str, bytes, int, float, complex, range, type, ModuleType, FunctionType, MethodType, nn.Module),
    *(torch.dtype, torch.device, torch.Size, torch.Generator, torch.layout, torch.memory_format),
)
"""Kinds of objects that are not looked into."""


class Returned(NamedTuple):
    """What a forward returned, the tensors in it, and their labels."""

    value: Any
    tensors: list[Tensor]
    labels: list[TensorLabels]

    def check(self, model: nn.Module) -> None:
        """Refuse a model in whose outputs there is no tensor.

        Args:
            model: whose forward it was.

        Raises:
            TraceError: names the type of what it returns.
        """
        if not self.tensors:
            raise TraceError(
                f"{type(model).__name__} returns a {type(self.value).__name__}, in which no tensor is found: return "
                "tensors, or containers or objects that hold them"
            )


def output_tensors(returned: Any) -> list[Tensor]:
    """Return the tensors in what a forward returned, each once, in a fixed order.

    Containers, mappings and objects are looked into: their items and their attributes. Iterators are exhausted. A cache
    of keys and values, which the model hands to its own next call (transformers' ``past_key_values``), is no output.

    Args:
        returned: what the forward returned.

    Example:
        >>> from types import SimpleNamespace
        >>> made = SimpleNamespace(logits=torch.zeros(2, 10), maps=(torch.zeros(2, 4, 8, 8) for _ in range(2)))
        >>> [tuple(tensor.shape) for tensor in output_tensors(made)]
        [(2, 10), (2, 4, 8, 8), (2, 4, 8, 8)]
    """
    return list(_tensors_in(returned, {}, into_caches=False))


def tensors_held(value: Any) -> list[Tensor]:
    """Return the tensors that a value holds, those in caches of keys and values among them.

    Args:
        value: anything that a forward may return or take.
    """
    return list(_tensors_in(value, {}, into_caches=True))


def _tensors_in(value: Any, seen: dict[int, Any], into_caches: bool) -> Iterator[Tensor]:
    if value is None or isinstance(value, _OPAQUE) or id(value) in seen or hasattr(value, "__array_interface__"):
        return
    seen[id(value)] = value  # kept, so that nothing else gets its identity
    if isinstance(value, Tensor):
        yield value
        return
    if _is_key_value_cache(value) and not into_caches:
        return
    parts = [*_items(value), *_attributes(value)]
    for part in sorted(parts, key=_rank) if isinstance(value, Set) else parts:
        yield from _tensors_in(part, seen, into_caches)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [value[key] for key in value]
    if isinstance(value, Iterable):
        return list(value)
    return ()


def _attributes(value: Any) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(value, name, None)


def _rank(value: Any) -> tuple[Any, ...]:
    """Sort the members of a set in an order that does not depend on memory addresses."""
    if not isinstance(value, Tensor):
        return ()
    numbers = not value.is_meta and value.numel() > 0
    return tuple(value.shape), str(value.dtype), float(value.detach().abs().double().sum()) if numbers else 0.0


def _is_key_value_cache(value: Any) -> bool:
    return callable(getattr(value, "get_seq_length", None)) and callable(getattr(value, "update", None))
