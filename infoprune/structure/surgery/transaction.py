"""Undo all changes to models and optimizers if a step fails."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.structure.function_caches import forget_results
from infoprune.structure.module_state import Attributes
from infoprune.structure.surgery.history import KEY
from infoprune.structure.surgery.in_place_swap import InPlaceSwap
from infoprune.structure.tensors import owned_tensors


class Transaction:
    """Restore models and optimizers to their state on entry if the block ends by any exception.

    It records the attributes of all modules, the contents of their dicts, lists and sets, the optimizers' parameters
    and their state: references, no values. Tensors that are written in place, as by ``load_state_dict``, are
    restored only if :meth:`keep_values` was called before. Tensors that :func:`shrink` splits to save memory are
    joined again, see :class:`InPlaceSwap`.

    Args:
        models: what is to be changed. Parts of each other may be among them.
        optimizers: whose parameters and state are to be changed.
        saves_memory: whether :func:`shrink` may split tensors; False: every tensor keeps its memory, which others may
            have views of.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> first = net[0]
        >>> try:
        ...     with Transaction([net]):
        ...         net[0] = nn.Linear(3, 5)
        ...         raise MemoryError
        ... except MemoryError:
        ...     print(net[0] is first)
        True
    """

    def __init__(
        self, models: Iterable[nn.Module], optimizers: Iterable[Optimizer] = (), saves_memory: bool = True
    ) -> None:
        modules = {id(module): module for model in models for module in model.modules()}
        self._modules = list(modules.values())
        self._attributes = Attributes(self._modules)
        histories = (module.__dict__.get(KEY) for module in modules.values())
        self._histories = [(history, dict(vars(history))) for history in histories if history is not None]
        self._groups = [(group, group["params"], list(group["params"])) for o in optimizers for group in o.param_groups]
        self._states: list[tuple[Any, dict[Any, Any]]] = [(o.state, dict(o.state)) for o in optimizers]
        self._values: list[tuple[Tensor, Tensor]] = []
        self.swap = InPlaceSwap(saves_memory)

    def keep_values(self, model: nn.Module) -> None:
        """Copy the values of a model's tensors before they are overwritten; the copies are freed with the transaction.

        Args:
            model: the model; its parameters and buffers are copied.
        """
        with torch.no_grad():
            self._values += [(entry.tensor, entry.tensor.clone()) for entry in owned_tensors(model).values()]

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._undo()

    def _undo(self) -> None:
        self._attributes.restore()
        for history, before in self._histories:
            vars(history).update(before)
        for group, params, content in self._groups:
            group["params"] = params
            params[:] = content
        for state, entries in self._states:
            state.clear()
            state.update(entries)
        self.swap.undo()
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)
        forget_results(self._modules)  # which the cut model may have computed meanwhile
