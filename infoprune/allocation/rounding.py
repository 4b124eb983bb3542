"""Round widths to multiples, given as a number or chosen by the widths of the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from infoprune.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure

RoundTo: TypeAlias = int | Literal["auto"]

AUTO: Literal["auto"] = "auto"

STEPS = ((128, 16), (64, 8), (16, 4))
"""From so many channels on, "auto" rounds to so many. Each is at most an eighth of the layer, or four channels, which
ONNX Runtime's blocked convolutions need."""


def check_round_to(round_to: object) -> None:
    """Refuse a ``round_to`` that is neither a whole number of at least 1 nor "auto".

    Args:
        round_to: the option.
    """
    if round_to == AUTO or (isinstance(round_to, int) and not isinstance(round_to, bool) and round_to >= 1):
        return
    meant = nearest(round_to, [AUTO]) if isinstance(round_to, str) else ""
    raise ConfigurationError(f"round_to must be a whole number of at least 1, or 'auto', got {round_to!r}{meant}")


def steps(
    structure: Structure,
    round_to: RoundTo | Mapping[str, int],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the number of units that the width of each prunable group is a multiple of.

    With "auto" the channels of each layer that makes them decide: multiples of 16 from 128 channels on, of 8 from 64
    on, of 4 from 16 on, and any number below; of at most half the group. Where a unit is several channels (an attention
    head), the channels are counted.

    Args:
        structure: The channel groups.
        round_to: A number of units, "auto", or a mapping of group names to numbers of units; groups that it does not
            name take any width.
        sizes: Group name -> units before the first cut, so that steps stay the same in gradual pruning.

    Example:
        >>> import torch, infoprune
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 128, 3), nn.Conv2d(128, 9, 3))
        >>> steps(infoprune.trace(net, torch.zeros(1, 3, 8, 8)), "auto")
        {'0': 4, '1': 16}
    """
    if isinstance(round_to, Mapping):
        return {group.name: round_to.get(group.name, 1) for group in structure.prunable}
    check_round_to(round_to)
    if round_to != AUTO:
        return {group.name: round_to for group in structure.prunable}
    return {
        group.name: _auto(structure, group, (sizes or {}).get(group.name, group.size)) for group in structure.prunable
    }


def halved(step: Mapping[str, int]) -> dict[str, int]:
    """Return steps that are half as wide, at least 1.

    Args:
        step: Group name -> number of units of a step.

    >>> halved({"a": 16, "b": 1})
    {'a': 8, 'b': 1}
    """
    return {name: max(1, units // 2) for name, units in step.items()}


def _auto(structure: Structure, group: ChannelGroup, units: int) -> int:
    found = [1]
    for layer, slot in structure.producers(group):
        width = max(1, len(slot.index) // group.size)
        own, filters = units * width, structure.shapes[layer.weight][layer.dim]
        step = next((step for least, step in STEPS if max(own, filters) >= least), 1)
        while step > 1 and 2 * step > own:  # of several groups in a layer, a small one keeps a choice
            step //= 2
        found.append(in_units(step, width))
    return max(found)


def unit_widths(structure: Structure, group: ChannelGroup) -> set[int]:
    """Return how many channels a unit is in each layer that makes the group's channels.

    Args:
        structure: The channel groups.
        group: One of them.
    """
    return {max(1, len(slot.index) // group.size) for _, slot in structure.producers(group)}


def in_units(channels: int, width: int) -> int:
    """Return the fewest units of ``width`` channels that are a multiple of ``channels``.

    Args:
        channels: The multiple that widths are rounded to.
        width: Channels of one unit.

    >>> in_units(16, 1), in_units(16, 2), in_units(16, 64)
    (16, 8, 1)
    """
    return channels // math.gcd(channels, width)
