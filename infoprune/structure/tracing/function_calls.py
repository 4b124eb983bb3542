"""See the functions that a traced pass calls, where operators do not tell all: numbers written out, data replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from infoprune.errors import TraceError
from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.execution import Observe, Operator
from infoprune.structure.tracing.overwritten import check_numbers
from infoprune.structure.tracing.rules.movement import read_out


class FunctionCalls(TorchFunctionMode):
    """See the functions that are called until the end of the block, and let their operators tell what they do.

    On the meta device ``torch.tensor(1 / width, device=x.device)`` loses its numbers, and in some versions of PyTorch
    no operator runs for it. So tensors of written-out numbers are made on the CPU and moved to the meta device, which
    is an operator that has the numbers. Nor does an operator run for ``x.data = y``, which is ``x.set_(y)`` here.

    Nor does one where ``x.numpy()`` and ``x.tolist()`` read the numbers of a tensor. These are observed as if they were
    operators.

    Attributes:
        observe: runs and records an operator, as `Tracer.observe` does; None: reading is not observed.
        sizes_follow: whether a function runs that computes the sizes of a reshape from its operands, as ``flatten``.

    Example:
        >>> with FunctionCalls():
        ...     torch.tensor([1.0, 2.0], device="meta").device
        device(type='meta')
    """

    observe: Observe | None = None
    sizes_follow = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _CONCERNED:  # as nearly all
            return func(*args, **kwargs) if kwargs else func(*args)
        if func == _SET_DATA:
            return _replace_data(*args)
        if func in _READ_DIRECTLY:
            check_numbers(args[0])
            if self.observe is not None:
                return self.observe(_reading(func), args, kwargs or {})
        if func in _SIZES_FOLLOW and _PLAIN.issuperset(types):
            self.sizes_follow = True
            try:
                return func(*args, **kwargs or {})
            finally:
                self.sizes_follow = False
        kwargs = kwargs or {}
        if func is Tensor.new_tensor or (func is Tensor.new and _holds_numbers(args[1:])):
            like, *args = args  # type: ignore[assignment]
            given = {key: value for key, value in kwargs.items() if value is not None}
            func, kwargs = torch.tensor, {"dtype": like.dtype, "device": like.device, **given}
        if func in _FROM_NUMBERS and _is_meta(kwargs.get("device")) and not _copies(func, args, kwargs):
            return _moved(func, args, kwargs)
        return func(*args, **kwargs)


_FROM_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
_READ_DIRECTLY = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_SIZES_FOLLOW = frozenset({
    torch.flatten, Tensor.flatten, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.nn.functional.linear,
    torch.einsum,
})  # fmt: skip
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Arguments of other types may run code of their own in place of a function."""

_CONCERNED = _FROM_NUMBERS | _SIZES_FOLLOW | _READ_DIRECTLY | {Tensor.new_tensor, Tensor.new, _SET_DATA}


def _reading(func: Callable[..., Any]) -> Operator:
    """Return a function that reads numbers as an operator."""
    name = func.__name__.strip("_")
    return Operator(func, read_out, f"aten.{name}", lambda args, kwargs: func(*args, **kwargs), draws=False)


def _replace_data(tensor: Tensor, data: Tensor) -> None:
    if data is tensor:  # as where a layer is moved to the device that it is on
        return
    if data.dtype != tensor.dtype and _same_axes(data, tensor):
        return _SET_DATA(tensor, data)
    if data.dtype != tensor.dtype:
        raise TraceError(
            f"the forward assigns to the .data of a tensor of {tensor.dtype} one of {data.dtype}, which cannot be "
            "traced: convert it first, or assign to a new name"
        )
    tensor.set_(data)  # type: ignore[call-overload]


def _moved(func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    args, kwargs = tree_map_only(Tensor, _number_of, (args, {**kwargs, "device": "cpu"}))
    wants_gradient = kwargs.pop("requires_grad", False)
    return func(*args, **kwargs).to("meta").requires_grad_(wants_gradient)


def _number_of(value: Tensor) -> Any:
    """Return what a tensor within a list, as in ``torch.tensor([2.0, x.mean()])``, stands for there."""
    return value if value.dim() else value.item()


def _same_axes(a: Tensor, b: Tensor) -> bool:
    pairs = zip_longest(labels_of(a).axes, labels_of(b).axes)
    return all(one is other for one, other in pairs)


def _copies(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("obj" if func is torch.asarray else "data"), Tensor)


def _holds_numbers(args: Sequence[Any]) -> bool:
    """Return whether ``x.new(...)`` gets the numbers, not the shape, of a tensor."""
    return len(args) == 1 and isinstance(args[0], (list, tuple)) and not isinstance(args[0], torch.Size)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
