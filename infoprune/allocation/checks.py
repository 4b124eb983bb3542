"""Check the widths that an allocation returns."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from infoprune.allocation.grid import WidthGrid
from infoprune.errors import ConfigurationError, nearest


def as_widths(caller: str, widths: Any, grids: Mapping[str, WidthGrid]) -> dict[str, int]:
    """Return widths with their numbers as ``int``.

    Args:
        caller: How messages refer to the allocation.
        widths: What it returned.
        grids: Group name -> the widths that it may take.

    Raises:
        ConfigurationError: no mapping, other groups than those of ``grids``, or a width that is not open to its group.
    """
    if not isinstance(widths, Mapping):
        raise ConfigurationError(
            f"{caller} gives {type(widths).__name__}; return a dict from the name of each group to its width"
        )
    for name in widths:
        if name not in grids:
            raise ConfigurationError(
                f"{caller} gives a width for group {name!r}, which is not to be cut{nearest(str(name), grids)}; give "
                "widths for the groups in grids alone"
            )
    found = {}
    for name, grid in grids.items():
        if name not in widths:
            raise ConfigurationError(f"{caller} gives no width for group {name!r}; give one for every group in grids")
        found[name] = _as_width(caller, name, widths[name], grid)
    return found


def _as_width(caller: str, name: str, value: Any, grid: WidthGrid) -> int:
    try:
        width = operator.index(value)  # of NumPy and of tensors too
    except TypeError:
        width = -1
    if width != grid.size and (width < grid.lowest or width > grid.size or width % grid.step):
        number = "a whole number" if grid.step == 1 else f"{grid.size} or a multiple of {grid.step}"
        raise ConfigurationError(
            f"{caller} gives group {name!r} a width of {value!r}, which must be {number} from {grid.lowest} to "
            f"{grid.size}; grids[{name!r}].at(share) gives such widths"
        )
    return width
