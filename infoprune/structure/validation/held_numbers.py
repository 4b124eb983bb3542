"""The numbers that a module holds: in attributes of its own or its class, and in lists, dicts, configurations there."""

from __future__ import annotations

import argparse
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from infoprune.structure.surgery.attributes import GEOMETRY, element

DEPTH = 2
"""Numbers are looked for in containers, and in containers within these: ``[[16, 16], [32]]``."""


def integers(module: nn.Module) -> dict[str, int]:
    """Return the attributes of a module that are whole numbers above 1, by name.

    Args:
        module: the module; submodules are not looked into.

    Example:
        >>> integers(nn.MultiheadAttention(8, 2))["num_heads"]
        2
    """
    return {name: value for name, value in _attributes(module).items() if _is_whole(value) and value > 1}


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, then those that its classes define: a cut gives the module one of its own.

    Those of frameworks are left out, and private ones, which belong to them, too.
    """
    own = vars(module)
    classes = [kind for kind in type(module).__mro__[:-1] if kind.__module__.partition(".")[0] not in _FRAMEWORKS]
    shared = {name: value for kind in reversed(classes) for name, value in vars(kind).items() if name not in own}
    return {**own, **{name: value for name, value in shared.items() if name[0] != "_" and name not in GEOMETRY}}


_FRAMEWORKS = frozenset({"torch", "lightning", "pytorch_lightning"})


def elements(module: nn.Module) -> dict[str, int]:
    """Return the whole numbers above 1 in what a module holds, by the path of the element.

    These are lists, tuples and deques of whole numbers, and dicts, dataclasses and namespaces of settings in public
    attributes, such as the configuration that all modules of a network share, and such containers in these. Private
    attributes belong to frameworks: Lightning keeps hyperparameters there.

    Args:
        module: the module; submodules are not looked into.

    Returns:
        Such as ``{"split_sizes[1]": 16, "config[widths][0]": 32}``.
    """
    inside = ((path, value) for path, value in _values_in(module, DEPTH) if "[" in path)
    return {path: value for path, value in inside if _is_whole(value) and value > 1}


def sequence(module: nn.Module, sizes: Sequence[int]) -> list[str]:
    """Return the paths of the elements of the one list or tuple of a module that holds just these sizes.

    Args:
        module: any module.
        sizes: of the parts of a split, or of a shape.

    Returns:
        One path for each size; nothing where no list or tuple, or more than one, holds them.
    """
    lists = ((path, value) for path, value in _values_in(module, DEPTH - 1) if _is_sequence(value))
    found = [path for path, held in lists if all(map(_is_whole, held)) and list(held) == list(sizes)]
    return [element(found[0], place) for place in range(len(sizes))] if len(found) == 1 else []


def _values_in(module: nn.Module, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module and what is so deep inside of them, each with the path that plans know it by."""
    for name, held in _attributes(module).items():
        yield from _with_items(name, held, name.startswith("_"), depth)


def _with_items(path: str, held: Any, private: bool, depth: int) -> Iterator[tuple[str, Any]]:
    yield path, held
    for place, value in _items(held, private) if depth else ():
        yield from _with_items(element(path, place), value, private, depth - 1)


def _items(held: Any, private: bool) -> Iterable[tuple[int | str, Any]]:
    """Return the items of a list of numbers or of containers, and of a configuration that is not in a private one."""
    if _is_sequence(held):
        alike = all(map(_is_whole, held)) or all(_is_sequence(item) or _is_configuration(item) for item in held)
        return enumerate(held) if alike else ()
    if private or not _is_configuration(held):
        return ()
    settings = (held if isinstance(held, dict) else vars(held)).items()
    return [(key, value) for key, value in settings if isinstance(key, str) and key.isidentifier()]


def _is_sequence(held: Any) -> bool:
    """Return whether a value is a list or tuple that can be made again with other numbers."""
    named = type(held).__bases__ == (tuple,) and hasattr(held, "_fields")
    return named or type(held) in (list, tuple, torch.Size, deque)


def _is_configuration(held: Any) -> bool:
    """Return whether a value holds settings and nothing else, so that a module may get a copy of its own."""
    if type(held) in (dict, OrderedDict):
        values = held.values()
    elif isinstance(held, SimpleNamespace | argparse.Namespace) or (is_dataclass(held) and hasattr(held, "__dict__")):
        values = vars(held).values()
    else:
        return False
    return not isinstance(held, type | nn.Module) and all(isinstance(value, _SETTINGS) for value in values)


_SETTINGS = (bool, int, float, str, type(None), np.integer, list, tuple, dict, torch.dtype, torch.device)


def _is_whole(value: Any) -> bool:
    return type(value) is int or isinstance(value, np.integer)
