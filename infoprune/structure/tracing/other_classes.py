"""See where a traced pass turns a tensor into one of another class, for which PyTorch runs no operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from infoprune.structure.tracing.execution import Observe, Operator
from infoprune.structure.tracing.rules import find_rule

_ALIAS = torch.ops.aten.alias.default


@contextmanager
def other_classes_seen(observe: Observe) -> Iterator[None]:
    """Let ``nn.Parameter(x)`` and ``x.as_subclass(Image)`` count as the operator ``alias`` until the end of the block.

    Both make a new tensor on the same memory, past all modes.

    Args:
        observe: runs and records an operator, as `Tracer.observe` does.
    """
    own = get_ident()  # other threads may make parameters of their own meanwhile
    make, turn = Tensor._make_subclass, Tensor.as_subclass

    def made(cls: type, data: Tensor, *args: Any, **kwargs: Any) -> Any:
        return run(lambda tensor: make(cls, tensor, *args, **kwargs), data)

    def turned(tensor: Tensor, cls: type) -> Any:
        return run(lambda tensor: turn(tensor, cls), tensor)

    def run(function: Callable[[Tensor], Any], tensor: Tensor) -> Any:
        if get_ident() != own:
            return function(tensor)
        kernel = lambda args, _: function(*args)  # noqa: E731
        with torch._C.DisableTorchFunction():  # as while an operator is observed
            return observe(Operator(_ALIAS, find_rule(_ALIAS), "aten.alias", kernel, draws=False), (tensor,), {})

    # They are methods of the base class in C++, which come back when these are deleted; a pass may run within another.
    before = {name: vars(Tensor)[name] for name in ("_make_subclass", "as_subclass") if name in vars(Tensor)}
    Tensor._make_subclass = staticmethod(made)  # type: ignore[method-assign]
    Tensor.as_subclass = turned  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del Tensor._make_subclass, Tensor.as_subclass
        for name, method in before.items():
            setattr(Tensor, name, method)
