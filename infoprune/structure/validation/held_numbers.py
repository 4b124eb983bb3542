"""The numbers that a module holds: in attributes of its own, and in lists and tuples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from infoprune.structure.surgery.attributes import element


def integers(module: nn.Module) -> dict[str, int]:
    """Return the attributes of a module that are whole numbers above 1, by name.

    Args:
        module: the module; submodules are not looked into.

    Example:
        >>> integers(nn.MultiheadAttention(8, 2))["num_heads"]
        2
    """
    return {name: value for name, value in vars(module).items() if type(value) is int and value > 1}


def elements(module: nn.Module) -> dict[str, int]:
    """Return the whole numbers above 1 in a module's lists and tuples of numbers, by the path of the element.

    Args:
        module: the module; submodules are not looked into.

    Returns:
        Such as ``{"split_sizes[1]": 16}``.
    """
    lists = {name: held for name, held in vars(module).items() if type(held) in (list, tuple, torch.Size)}
    whole = {name: numbers for name, numbers in lists.items() if all(type(n) is int for n in numbers)}
    return {element(name, place): n for name, numbers in whole.items() for place, n in enumerate(numbers) if n > 1}


def sequence(module: nn.Module, sizes: Sequence[int]) -> list[str]:
    """Return the paths of the elements of the one list or tuple of a module that holds just these sizes.

    Args:
        module: any module.
        sizes: of the parts of a split, or of a shape.

    Returns:
        One path for each size; nothing where no list or tuple, or more than one, holds them.
    """
    lists = {name: held for name, held in vars(module).items() if type(held) in (list, tuple)}
    found = [name for name, held in lists.items() if all(type(n) is int for n in held) and list(held) == list(sizes)]
    return [element(found[0], place) for place in range(len(sizes))] if len(found) == 1 else []
