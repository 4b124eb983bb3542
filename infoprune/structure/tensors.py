"""The parameters and buffers of a model, by name and with every place that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from infoprune.errors import ConfigurationError


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


def on_meta(tensor: Tensor) -> Tensor:
    """A stand-in with the same shape and memory layout and no data."""
    return torch.empty_like(tensor, device="meta").requires_grad_(False)
