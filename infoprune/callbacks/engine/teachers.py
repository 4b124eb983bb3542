"""Find teachers: networks that are not trained and whose outputs the loss of a training step reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infoprune.callbacks.engine.written_storages import storage_of

Found = Callable[[Any], list[str]]
"""Takes what a training step returned; returns the paths of the teachers that it ran."""


@contextmanager
def watching_teachers(module: nn.Module, trained: Sequence[Tensor]) -> Iterator[Found]:
    """Follow the outputs of untrained networks while a training step runs, to find teachers among them.

    A teacher's outputs reach the loss without passing a trained layer, whether gradients are on or off. The outputs of
    a frozen backbone pass a trained head: it is no teacher. Only networks of two layers with weights or more count.

    Args:
        module: the LightningModule.
        trained: its parameters that an optimizer trains.

    Returns:
        A function of the loss: the paths of the teachers.

    Example:
        >>> teacher, student = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Linear(2, 1)
        >>> net = nn.ModuleDict({"teacher": teacher, "student": student})
        >>> with watching_teachers(net, list(student.parameters())) as found:
        ...     x = torch.ones(1, 2)
        ...     loss = (net["student"](x) - net["teacher"](x)).square().sum()
        >>> found(loss)
        ['teacher']
    """
    networks = _untrained_networks(module, {id(parameter) for parameter in trained})
    if not networks or not trained:
        yield lambda _: []
        return
    outputs = _Outputs(trained)
    # Of a list of layers only the layers are called.
    parts = ((path, part) for path, network in networks for part in network.modules())
    handles = [part.register_forward_hook(outputs.hook(path)) for path, part in parts]
    try:
        with outputs:
            yield outputs.reaching
    finally:
        for handle in handles:
            handle.remove()


def _untrained_networks(module: nn.Module, trained: set[int]) -> list[tuple[str, nn.Module]]:
    """Return the outermost parts of two layers or more without trained parameters."""
    found: list[tuple[str, nn.Module]] = []
    for path, part in module.named_modules():
        weights = [parameter for parameter in part.parameters() if parameter.dim() > 1]
        is_trained = any(id(parameter) in trained for parameter in part.parameters())
        is_inner = any(path.startswith(f"{outer}.") for outer, _ in found)
        if path and len(weights) > 1 and not is_trained and not is_inner:
            found.append((path, part))
    return found


class _Outputs(TorchDispatchMode):
    """Follow outputs of networks through all operators except those that compute with trained weights.

    Args:
        trained: the trained parameters.
    """

    def __init__(self, trained: Sequence[Tensor]) -> None:
        super().__init__()
        self._weights = _storages([parameter for parameter in trained if parameter.dim() > 1])
        self._sources: dict[int, set[str]] = {}  # memory -> paths of the networks that it was computed from
        self._alive: list[Tensor] = []  # so that no other tensor takes their memory

    def hook(self, path: str) -> Callable[..., None]:
        """Return a forward hook that records the outputs of a network.

        Args:
            path: Path of the network in the LightningModule.
        """
        return lambda _, __, output: self._note(output, {path})

    def reaching(self, result: Any) -> list[str]:
        """Return the paths of the networks from whose outputs a value was computed.

        Args:
            result: What the training step returned.
        """
        return sorted(set().union(*(self._sources.get(storage, set()) for storage in _storages(result))))

    def _note(self, result: Any, paths: set[str]) -> None:
        self._sources.update(dict.fromkeys(_storages(result), paths))
        self._alive += [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _storages([args, kwargs])
        if given and given <= self._weights:  # a weight, seen or computed otherwise
            self._weights |= _storages(result)
            self._alive += [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        elif not given & self._weights:
            paths = set().union(*(self._sources.get(storage, set()) for storage in given))
            if paths:
                self._note(result, paths)
        return result


def _storages(values: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)
    return {storage_of(tensor) for tensor in tensors} - {0}
