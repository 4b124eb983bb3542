"""Give functions that remember their results an empty memory in every pass, and after a cut.

Code such as a detector's makes a table once for each size and keeps it by `functools.lru_cache`. After a pass on shapes
the function would return tensors without numbers. In the next pass its code would not run, so that nothing would tell
how the table follows the width of a layer. After a cut it would return tables for the old widths.

A function without arguments that was called already is left alone: such as a file's settings, its result is one object
for all of its callers, which a call would not make again, and no width of a model comes in.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import CellType, FunctionType
from typing import Any, NamedTuple

from torch import nn

_KINDS = frozenset({functools._lru_cache_wrapper, FunctionType, staticmethod, classmethod})
"""What a function with a cache is, or may hold one in a closure; most attributes are nothing of this."""


class CachedFunction(NamedTuple):
    """A function with an `lru_cache`, and where it is found.

    Attributes:
        holder: a class, a file, a module of the model, or the cell in which a decorator keeps the function.
        name: of the function there.
        value: what the holder has by that name: the function, or a static or class method of it.
    """

    holder: Any
    name: str
    value: Any

    @property
    def function(self) -> Any:
        """Return the function with its `lru_cache`, out of a static or class method."""
        return _unwrapped(self.value)


def cached_functions(modules: Iterable[nn.Module]) -> list[CachedFunction]:
    """Return the functions with an `lru_cache` of modules, of their classes and of the files that define these.

    Args:
        modules: all modules of a model.

    Example:
        >>> class Net(nn.Module):
        ...     @functools.lru_cache
        ...     def table(self, size): ...
        >>> [function.name for function in cached_functions([Net()])]
        ['table']
    """
    modules = list(modules)
    kinds = {kind for module in modules for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")}
    files = (sys.modules.get(name) for name in sorted({kind.__module__ for kind in kinds}))
    holders = [*modules, *sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)), *files]
    found = (
        CachedFunction(*place)
        for holder in holders
        if holder is not None and not _KINDS.isdisjoint(map(type, vars(holder).values()))  # as few modules
        for name, value in vars(holder).items()
        if type(value) in _KINDS
        for place in ((holder, name, value), *_cells_of(value))
    )
    return [
        one
        for one in found
        if isinstance(one.function, functools._lru_cache_wrapper) and not _keeps_one_object(one.function)
    ]


@contextmanager
def emptied(functions: Iterable[CachedFunction]) -> Iterator[None]:
    """Let functions remember nothing at the start of the block, and what they remembered before at its end.

    Args:
        functions: the functions.
    """
    with ExitStack() as stack:
        for one in functions:
            fresh = functools.lru_cache(**one.function.cache_parameters())(one.function.__wrapped__)
            _set(one.holder, one.name, fresh if one.function is one.value else type(one.value)(fresh))
            stack.callback(_set, *one)
        yield


def forget_results(modules: Iterable[nn.Module]) -> None:
    """Let the functions of modules, of their classes and of their files forget what they remember.

    A function outside of classes may know a width, too: a module or a layer can be its argument.

    Args:
        modules: the modules.
    """
    for one in cached_functions(modules):
        one.function.cache_clear()


def _keeps_one_object(cached: Any) -> bool:
    function = cached.__wrapped__
    own = isinstance(function, FunctionType) and not function.__closure__  # no method, no variable of another function
    return own and cached.cache_info().currsize > 0 and not inspect.signature(function).parameters


def _unwrapped(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _cells_of(value: Any) -> Iterator[tuple[CellType, str, Any]]:
    """Yield the cells of a decorated function, in which the decorator may keep one with an `lru_cache`."""
    function = _unwrapped(value)
    for cell in (function.__closure__ or ()) if isinstance(function, FunctionType) else ():
        try:
            yield cell, "cell_contents", cell.cell_contents
        except ValueError:  # it is empty
            continue


def _set(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, type | CellType):
        setattr(holder, name, value)
    else:
        vars(holder)[name] = value  # past nn.Module.__setattr__
