"""`OutsideState`: a snapshot of what a LightningModule's attributes lead to and no module owns."""

from __future__ import annotations

import inspect
import operator
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infoprune.callbacks.engine.held_copies import LARGEST, is_foreign, is_of_a_library
from infoprune.callbacks.engine.written_storages import WrittenStorages, storage_of
from infoprune.random_state import restorers
from infoprune.structure.module_state import Attributes
from infoprune.structure.surgery.held import own_attributes
from infoprune.structure.surgery.optimizer_state import parts_of, slots_of
from infoprune.structure.tensors import owned_tensors

DEPTH = 6
"""Objects are followed so deep."""

LARGEST_BYTES = 2**24
"""Larger arrays hold data, and are not copied."""

_PLAIN = (bool, int, float, str, tuple, type(None))
"""Values of class attributes that are restored."""


class OutsideState:
    """Record plain objects, queues, containers, and the networks and tensors in them, and restore them.

    An average that a plain object keeps, or a queue of earlier features, changes while a training step runs.
    Objects of libraries are passed over, as is what large containers hold. Tensors are copied when they are written.

    Args:
        module: the LightningModule.

    Example:
        >>> module = nn.Module()
        >>> module.queue, module.kept = deque([1]), {"mean": [torch.zeros(2)]}
        >>> with OutsideState(module).restored():
        ...     module.queue.append(2)
        ...     _ = module.kept["mean"][0].add_(1)
        >>> list(module.queue), module.kept["mean"][0].tolist()
        ([1], [0.0, 0.0])
    """

    def __init__(self, module: nn.Module) -> None:
        self._own = {id(entry.tensor) for entry in owned_tensors(module).values()}
        self._seen = {id(part) for part in module.modules()} | {id(getattr(module, "_trainer", None))}
        self._modules: list[nn.Module] = []
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []  # each with an alias of its memory
        self._arrays: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Any, dict[str, Any]]] = []  # attributes of objects without a dict, and of classes
        self._generators: list[Callable[[], object]] = []
        for _, _, value in own_attributes(module):
            self._note(value)
        for parameter in module.parameters():
            for hook in (getattr(parameter, "_backward_hooks", None) or {}).values():
                self._note(hook)
        for cls in {base for part in module.modules() for base in type(part).__mro__}:
            if not is_of_a_library(cls):
                self._slots.append((cls, {name: v for name, v in vars(cls).items() if isinstance(v, _PLAIN)}))
        self._attributes = Attributes(self._modules)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore everything at the end of the block."""
        copies = _CopiesOnWrite(alias for _, alias in self._tensors)
        try:
            with copies:
                yield
        finally:
            self._restore()
            copies.restore()

    def _note(self, value: Any, depth: int = 0) -> None:
        if isinstance(value, str | bytes | int | float | type(None)) or id(value) in self._seen or depth > DEPTH:
            return
        self._seen.add(id(value))
        self._generators += restorers([value])
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, np.ndarray | bytearray):
            if (len(value) if isinstance(value, bytearray) else value.nbytes) <= LARGEST_BYTES:
                self._arrays.append((value, value.copy()))
        elif isinstance(value, nn.Module):
            self._note_module(value, depth)
        elif isinstance(value, FunctionType | MethodType | partial):
            self._note_function(value, depth)
        elif not is_foreign(value) and not _is_code(value):
            if isinstance(value, dict | list | set | deque):
                if len(value) > LARGEST:
                    return
                self._contents.append((value, value.copy()))
            elif isinstance(attributes := getattr(value, "__dict__", None), dict):
                if any(type(inner).__module__ in ("_thread", "threading") for inner in attributes.values()):
                    return  # another thread may be at work on it
                self._contents.append((attributes, dict(attributes)))
            slots = {name: getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name)}
            if slots:
                self._slots.append((value, slots))
            for _, inner in list(parts_of(value)):
                self._note(inner, depth + 1)

    def _note_function(self, function: FunctionType | MethodType | partial[Any], depth: int) -> None:
        for cell, value in variables_of(function):
            if isinstance(value, _PLAIN):
                self._slots.append((cell, {"cell_contents": value}))
        for inner in bound_to(function):
            self._note(inner, depth + 1)

    def _note_module(self, module: nn.Module, depth: int) -> None:
        self._modules += module.modules()
        self._seen.update(map(id, module.modules()))
        for entry in owned_tensors(module).values():
            self._note_tensor(entry.tensor)
        for _, _, inner in list(own_attributes(module)):
            self._note(inner, depth + 1)

    def _note_tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self._own and storage_of(tensor):
            self._tensors.append((tensor, tensor.detach()))

    def restore_numbers(self) -> None:
        """Restore arrays, generators, and the attributes of objects without a dict and of classes."""
        for array, before in self._arrays:
            if isinstance(array, bytearray):
                array[:] = before
            elif array.flags.writeable and array.shape == before.shape:
                array[...] = before
        for holder, values in self._slots:
            for name, value in values.items():
                if getattr(holder, name, None) is not value:
                    _set(holder, name, value)
        for restore in self._generators:
            restore()

    def _restore(self) -> None:
        self._attributes.restore()
        for container, content in self._contents:
            if _same(container, content):
                continue
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                (container.extend if isinstance(container, deque) else container.update)(content)
        self.restore_numbers()
        for tensor, alias in self._tensors:
            if storage_of(tensor) != storage_of(alias):  # its ``data`` were set
                tensor.data = alias


def bound_to(value: Any) -> Iterator[Any]:
    """Yield what a function, method or `functools.partial` has bound; nothing for other values.

    Args:
        value: any value; no code of its own is run.
    """
    kind = type(value)
    if issubclass(kind, MethodType | BuiltinMethodType):
        yield value.__self__
    elif issubclass(kind, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    yield from (inner for _, inner in variables_of(value))


def variables_of(value: Any) -> Iterator[tuple[CellType, Any]]:
    """Yield the variables of other functions that a function uses: the cell of each, and its value.

    Args:
        value: any value; what is no function uses none.
    """
    for cell in (value.__closure__ or ()) if issubclass(type(value), FunctionType) else ():
        with suppress(ValueError):  # it has no value yet
            yield cell, cell.cell_contents


def _set(holder: Any, name: str, value: Any) -> None:
    """Set an attribute of an object, a class or a cell, past the code of frozen ones."""
    (type if isinstance(holder, type) else object).__setattr__(holder, name, value)


def _is_code(value: Any) -> bool:
    return isinstance(value, type | ModuleType | Enum) or inspect.isroutine(value)


def _same(container: Any, content: Any) -> bool:
    """Return whether a container holds just these objects."""
    if isinstance(container, set):
        return bool(container == content)
    same = len(container) == len(content) and all(map(operator.is_, container, content))
    return same and (not isinstance(container, dict) or all(map(operator.is_, container.values(), content.values())))


class _CopiesOnWrite(WrittenStorages):
    """Copy the memory of tensors before it is written to, and restore it."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self._storages = {storage_of(tensor): tensor.untyped_storage() for tensor in tensors}
        self._before: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    def note(self, address: int) -> None:
        if address in self._storages and address not in self.found:
            self._before.append((self._storages[address], self._storages[address].clone()))
        super().note(address)

    def restore(self) -> None:
        for storage, before in self._before:
            storage.copy_(before)
