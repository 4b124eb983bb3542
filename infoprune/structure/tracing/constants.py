"""Let the operators of a traced pass see the numbers that code writes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_new_tensor = Tensor.new_tensor


@contextmanager
def constants_in_sight() -> Iterator[None]:
    """Make tensors of written-out numbers on the CPU and move them to the meta device, until the end of the block.

    On the meta device ``torch.tensor(1 / width, device=x.device)`` loses its numbers, and in some versions of PyTorch
    no operator runs for it. A move from the CPU is an operator that has the numbers.

    Example:
        >>> with constants_in_sight():
        ...     torch.tensor([1.0, 2.0], device="meta").device
        device(type='meta')
    """
    before = torch.tensor, torch.as_tensor
    torch.tensor, torch.as_tensor = map(_from_cpu, before)
    Tensor.new_tensor = _new_from_cpu  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.tensor, torch.as_tensor = before
        if "new_tensor" in vars(Tensor):  # it belongs to the base class
            del Tensor.new_tensor


def _from_cpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        if _is_meta(kwargs.get("device")) and not _copies_a_tensor(args, kwargs):
            return function(*args, **{**kwargs, "device": "cpu"}).to("meta")
        return function(*args, **kwargs)

    return made


def _new_from_cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if _is_meta(kwargs.get("device") or self.device) and not _copies_a_tensor(args, kwargs):
        return _new_tensor(self, *args, **{"dtype": self.dtype, **kwargs, "device": "cpu"}).to("meta")
    return _new_tensor(self, *args, **kwargs)


def _copies_a_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("data"), Tensor)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
