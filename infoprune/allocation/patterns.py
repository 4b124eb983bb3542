"""Match channel groups by the names of their layers, and read minimum widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from infoprune.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure

MinWidth: TypeAlias = int | Mapping[str, int | float]
"""Fewest units of every group, or pattern of layers -> fewest units, as a number or as a share below 1."""


def matching(structure: Structure, pattern: str) -> list[ChannelGroup]:
    """Return the groups that a shell pattern matches, by their own name or that of a layer whose filters they hold.

    Args:
        structure: The channel groups.
        pattern: A shell pattern such as ``"layer1.*"``.

    Raises:
        ConfigurationError: it matches no layer; the message gives the nearest name.
    """
    names = {group.name: {group.name, *(layer.name for layer, _ in structure.producers(group))}
             for group in structure.groups}  # fmt: skip
    matched = [group for group in structure.groups if any(fnmatchcase(name, pattern) for name in names[group.name])]
    if not matched:
        known = [name for group_names in names.values() for name in group_names]
        raise ConfigurationError(f"no layer matches the pattern {pattern!r}{nearest(pattern, known)}")
    return matched


def check_min_width(min_width: object) -> None:
    """Refuse a ``min_width`` that is no :data:`MinWidth`.

    Args:
        min_width: the option.
    """
    for value in min_width.values() if isinstance(min_width, Mapping) else [min_width]:
        share = isinstance(min_width, Mapping) and isinstance(value, float) and 0 < value < 1
        if not share and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(
                f"min_width must be a whole number of at least 1, got {value!r}; "
                "by layer, {'layer1.*': 8, '*': 0.25}, it may also be a share of the units"
            )


def least_widths(structure: Structure, min_width: MinWidth, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the fewest units that each prunable group keeps; where several patterns match, the last one counts.

    Args:
        structure: The channel groups.
        min_width: One number, or a number or share for each pattern.
        sizes: Group name -> units before the first cut, which shares refer to.

    Example:
        >>> import torch, infoprune
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 20, 3), nn.Conv2d(20, 9, 3))
        >>> least_widths(infoprune.trace(net, torch.zeros(1, 3, 8, 8)), {"*": 0.5, "1": 4})
        {'0': 16, '1': 4}
    """
    check_min_width(min_width)
    if not isinstance(min_width, Mapping):
        return {group.name: min_width for group in structure.prunable}
    least = {group.name: 1 for group in structure.prunable}
    for pattern, value in min_width.items():
        for group in matching(structure, pattern):
            if group.name in least:
                units = (sizes or {}).get(group.name, group.size)
                least[group.name] = max(1, math.ceil(value * units) if isinstance(value, float) else value)
    return least
