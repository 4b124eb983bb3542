"""The inside of a network, kept aside before pruning, to be measured against what is left of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.files import written_whole

_INSIDE = ("_modules", "_parameters", "_buffers")


class Unpruned:
    """A copy of everything within a network, on the CPU; the network's own object is not copied.

    That way it can be put in the place of what the network holds later, with the LightningModule around it (its
    metrics, its steps, its optimizers' settings, which often cannot be copied) as it is.

    Args:
        network: the network, not yet pruned.

    Attributes:
        network: the same object.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> kept = Unpruned(net)
        >>> net[0] = nn.Linear(3, 4)
        >>> with kept.inside():
        ...     outputs = net(torch.ones(3))
        >>> bool((net(torch.ones(3)) == outputs).all())
        False
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._shell = nn.Module()
        # The memo lets children that point back at the network go on pointing at it.
        inside = copy.deepcopy({name: vars(network)[name] for name in _INSIDE}, {id(network): network})
        vars(self._shell).update(inside)
        self._shell.cpu()
        # Shrinking may rewrite such numbers (a width that forward divides by).
        self._numbers = {name: value for name, value in vars(network).items() if isinstance(value, (int, tuple))}

    def save(self, path: Path, module: nn.Module) -> None:
        """Write the copy to a file.

        Args:
            path: the file.
            module: the LightningModule that the network is part of.
        """
        name = next(name for name, part in module.named_modules() if part is self.network)
        state = {key: value for key, value in self._shell.state_dict().items() if isinstance(value, Tensor)}
        with written_whole(path) as scratch:
            torch.save({"network": name, "state_dict": state}, scratch)

    @classmethod
    def load(cls, path: Path, module: nn.Module) -> Unpruned:
        """Read what `save` wrote, for a LightningModule that is built anew and not yet pruned.

        Raises:
            RuntimeError: the file was written for another network.
            AttributeError: the module has no such part.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        kept = cls(module.get_submodule(content["network"]))
        kept._shell.load_state_dict(content["state_dict"], strict=False)  # extra state is not kept
        return kept

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the network be the unpruned one for a while, on the device that it is on."""
        device = next((tensor.device for tensor in self.network.parameters()), None)
        self._exchange()
        try:
            self.network.to(device)
            yield
        finally:
            self.network.cpu()
            self._exchange()

    def _exchange(self) -> None:
        mine, theirs = vars(self._shell), vars(self.network)
        for name in _INSIDE:
            mine[name], theirs[name] = theirs[name], mine[name]
        numbers: dict[str, Any] = {name: theirs[name] for name in self._numbers}
        theirs.update(self._numbers)
        self._numbers = numbers
