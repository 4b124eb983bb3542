"""Paths of modules: those around one, and those that run the same code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from torch import nn


@lru_cache(maxsize=4096)
def ancestors(module: str) -> tuple[str, ...]:
    """Return the paths of the modules that contain a module, its own first.

    Args:
        module: path of the module.

    Example:
        >>> ancestors("layer1.0.conv")
        ('layer1.0.conv', 'layer1.0', 'layer1', '')
    """
    parts = module.split(".") if module else []
    return tuple(".".join(parts[:n]) for n in range(len(parts), -1, -1))


def siblings(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Return the paths of the other modules that run the same code as a module.

    What PyTorch's own layers do is up to the code around them: their siblings have the same place in modules that run
    the code of their owner.

    Args:
        modules: path -> module of the whole model.
        name: path of the module.
    """
    module = modules[name]
    kind = type(module)
    if not _is_builtin_leaf(module):
        return [other for other, module in modules.items() if type(module) is kind and other != name]
    owner, _, child = name.rpartition(".")
    if not name:
        return []
    others = (join(other, child) for other in siblings(modules, owner))
    return [other for other in others if type(modules.get(other)) is kind]


def _is_builtin_leaf(module: nn.Module) -> bool:
    """Return whether a module is a layer of PyTorch, or a list of some, which code around it calls."""
    single = next(module.children(), None) is None or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return single and type(module).__module__.startswith("torch.nn.")


def join(module: str, attribute: str) -> str:
    """Return the path of an attribute of a module.

    Args:
        module: path of the module; empty for the model itself.
        attribute: name of the attribute.

    Example:
        >>> join("layer1.0", "width"), join("", "width")
        ('layer1.0.width', 'width')
    """
    return f"{module}.{attribute}" if module else attribute
