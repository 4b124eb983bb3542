"""The parameters and buffers of a model, by name and with every place that holds them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from infoprune.errors import ConfigurationError, TraceError
from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis


@dataclass(slots=True)
class OwnedTensor:
    """A parameter or buffer; tied ones are one tensor with several owners and go by their first name.

    Attributes:
        channel_dims: so many leading dimensions may hold channels; those behind them are positions of a kernel.
    """

    name: str
    tensor: Tensor
    channel_dims: int
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)

    def axes(self, labels: Sequence[Labels]) -> list[Axis]:
        """Return the labels of the dimensions that may hold channels, None for the others.

        Args:
            labels: the labels of each dimension.
        """
        return [*labels[: self.channel_dims], *[None] * len(labels[self.channel_dims :])]

    @property
    def is_parameter(self) -> bool:
        """Return whether it is a parameter rather than a buffer."""
        module, key = self.owners[0]
        return key in module._parameters

    def replace(self, tensor: Tensor | None) -> None:
        """Replace the tensor wherever modules hold it.

        Args:
            tensor: the new tensor; None: unset the entry.
        """
        for module, key in self.owners:
            store = module._parameters if key in module._parameters else module._buffers
            store[key] = tensor  # type: ignore[assignment]


def check_model(model: object) -> None:
    """Refuse a model that is no module, or a scripted one.

    Raises:
        ConfigurationError: says what was given.

    Args:
        model: what a caller gave as the model.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        advice = (
            "; build the model first and load the weights into it" if isinstance(model, type | Mapping | str) else ""
        )
        raise ConfigurationError(f"the model must be a torch.nn.Module in Python, got {kind}{advice}")


def owned_tensors(model: nn.Module) -> dict[str, OwnedTensor]:
    """Return all parameters and buffers of ``model`` by their first name, in registration order.

    Args:
        model: Any module.

    Raises:
        ConfigurationError: it is no module, or a scripted one, whose tensors cannot be replaced.
    """
    check_model(model)
    by_id: dict[int, OwnedTensor] = {}
    ranks: dict[str, int] = {}  # by convolution, how many dimensions its kernels have
    for prefix, module in model.named_modules():
        if isinstance(module, _ConvNd):
            ranks[prefix] = 2 + len(module.kernel_size)
        layer = re.sub(r"\.?parametrizations\.\w+$", "", prefix) if "parametrizations" in prefix else prefix
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in by_id:
                    name = f"{prefix}.{key}" if prefix else key
                    dims = 0 if is_lazy(tensor) else tensor.dim()
                    by_id[id(tensor)] = OwnedTensor(name, tensor, 2 if dims == ranks.get(layer) else dims)
                by_id[id(tensor)].owners.append((module, key))
    return {owned.name: owned for owned in by_id.values()}


def check_materialised(owned: Mapping[str, OwnedTensor]) -> None:
    """Refuse lazy parameters and buffers.

    Args:
        owned: parameters and buffers by name.

    Raises:
        TraceError: one has no shape yet.
    """
    for name, entry in owned.items():
        if is_lazy(entry.tensor):
            raise TraceError(f"{name} is a lazy parameter without a shape yet; run the model once before tracing it")


def computed_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Return copies of the tensors that a model's code has computed and stored, such as a masked or normalised weight.

    ``copy.deepcopy`` refuses such tensors, and takes these copies as its memo.

    Args:
        model: the model.

    Returns:
        ``id`` of a computed tensor -> a copy without gradient.
    """
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also of one whose code stores computed tensors.

    Args:
        model: the model.
    """
    return copy.deepcopy(model, dict(computed_tensors(model)))


@contextmanager
def swapped(owned: Mapping[str, OwnedTensor], stand_ins: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace tensors of a model until the end of the block.

    Args:
        owned: all parameters and buffers by name.
        stand_ins: name -> tensor that takes the place.
    """
    try:
        for name, tensor in stand_ins.items():
            owned[name].replace(tensor)
        yield
    finally:
        for name in stand_ins:
            owned[name].replace(owned[name].tensor)


def on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor with the same shape and memory layout on the meta device.

    Args:
        tensor: a dense tensor.
    """
    return torch.empty_like(tensor, device="meta").requires_grad_(False)
