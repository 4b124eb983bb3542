"""The parameters and buffers of a model, by name and with every place that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from infoprune.errors import ConfigurationError

Container: TypeAlias = "dict[Any, Any] | list[Any] | set[Any]"


@dataclass(slots=True)
class OwnedTensor:
    """A parameter or buffer; tied ones are one tensor with several owners and go by their first name."""

    name: str
    tensor: Tensor
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter rather than a buffer."""
        module, key = self.owners[0]
        return key in module._parameters

    def replace(self, tensor: Tensor | None) -> None:
        """Put another tensor into every place that holds this one."""
        for module, key in self.owners:
            store = module._parameters if key in module._parameters else module._buffers
            store[key] = tensor  # type: ignore[assignment]


def owned_tensors(model: nn.Module) -> dict[str, OwnedTensor]:
    """All parameters and buffers of ``model`` by their first name, in registration order.

    Raises:
        ConfigurationError: it is no module, or a scripted one, whose tensors cannot be replaced.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ConfigurationError(f"the model must be a torch.nn.Module in Python, got a {type(model).__name__}")
    by_id: dict[int, OwnedTensor] = {}
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is None:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                by_id.setdefault(id(tensor), OwnedTensor(name, tensor)).owners.append((module, key))
    return {owned.name: owned for owned in by_id.values()}


@contextmanager
def swapped(owned: Mapping[str, OwnedTensor], stand_ins: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model hold other tensors for a while."""
    try:
        for name, tensor in stand_ins.items():
            owned[name].replace(tensor)
        yield
    finally:
        for name in stand_ins:
            owned[name].replace(owned[name].tensor)


@contextmanager
def attributes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules back the attributes that they had: train/eval flags, and what a forward pass cached on them.

    Dicts, lists and sets among them stay the same objects and get their contents back, hooks apart.
    """
    before = [(module, dict(module.__dict__)) for module in modules]
    contents: dict[int, tuple[Container, Container]] = {}
    for _, attributes in before:
        for name, value in attributes.items():
            if isinstance(value, _CONTAINERS) and name not in _HOOKS:
                _note(value, contents)
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, content in contents.values():
            if container or content:
                _refill(container, content)


_CONTAINERS = (dict, list, set)
_HOOKS = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)


def _note(container: Container, contents: dict[int, tuple[Container, Container]]) -> None:
    """Copy a container, and those inside it, but none of what they hold."""
    if id(container) in contents:
        return
    contents[id(container)] = (container, container.copy())
    for inner in container.values() if isinstance(container, dict) else container:
        if isinstance(inner, _CONTAINERS):
            _note(inner, contents)


def _refill(container: Container, content: Container) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def on_meta(tensor: Tensor) -> Tensor:
    """A stand-in with the same shape and memory layout and no data."""
    return torch.empty_like(tensor, device="meta").requires_grad_(False)
