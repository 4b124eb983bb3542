"""`WrittenStorages`: record which memory a piece of code writes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WrittenStorages(TorchDispatchMode):
    """Record which memory is written to; values may stay equal, as of an average in its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {**dict(zip((one.name for one in func._schema.arguments), args, strict=False)), **(kwargs or {})}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                tensors = tree_leaves(given.get(argument.name))
                for tensor in tensors:
                    if isinstance(tensor, Tensor):
                        self.note(storage_of(tensor))
        return func(*args, **(kwargs or {}))

    def note(self, address: int) -> None:
        """Record that memory is about to be written to.

        Args:
            address: of the memory.
        """
        self.found.add(address)


def storage_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 if it has none of its own, as a sparse tensor.

    Args:
        tensor: the tensor; views of one memory have the same address.
    """
    if tensor.layout != torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()
