"""Combine the scores of filters into one score per unit of a channel group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from infoprune.structure import GroupSlot

NORMALIZE = ("minmax", "mean", "none")
COMBINE = ("mean", "sum", "max")

# Differences below this share of the values are rounding; stretching them to [0, 1] would rank noise.
ROUNDING = 1e-9


def minmax(values: Tensor) -> Tensor:
    """Scale values to [0, 1]; equal values give 0.

    Args:
        values: (N,) finite values.

    Example:
        >>> minmax(torch.tensor([1.0, 3.0, 2.0])).tolist(), minmax(torch.tensor([5.0, 5.0])).tolist()
        ([0.0, 1.0, 0.5], [0.0, 0.0])
    """
    if not values.numel():
        return values
    low, high = values.min().item(), values.max().item()
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        return torch.zeros_like(values)
    return (values - low) / (high - low)


def normalized(values: Tensor, how: str) -> Tensor:
    """Scale the scores of one layer so that layers can be compared.

    Args:
        values: (n,) scores.
        how: ``"minmax"`` to [0, 1], ``"mean"`` divides by the mean absolute score, ``"none"`` changes nothing.
    """
    if how == "minmax":
        return minmax(values)
    scale = values.abs().mean()
    return values / scale if how == "mean" and scale > 0 else values


def unit_scores(filter_scores: Tensor, slot: GroupSlot, size: int) -> Tensor:
    """Return the mean score of the filters of each unit.

    Args:
        filter_scores: (filters,) scores of one layer.
        slot: Which filters belong to which unit.
        size: Number of units.

    Returns:
        (size,) scores.
    """
    index, unit = torch.as_tensor(slot.index), torch.as_tensor(slot.unit)
    if len(slot.unit) == size and (slot.unit[1:] > slot.unit[:-1]).all():  # one filter a unit, in order
        return filter_scores[index]
    total = filter_scores.new_zeros(size).index_add_(0, unit, filter_scores[index])
    return total / torch.bincount(unit, minlength=size)


def combine_members(members: Sequence[tuple[Tensor, GroupSlot]], size: int, normalize: str, combine: str) -> Tensor:
    """Return one score per unit from the layers that feed a group.

    Args:
        members: The scores of each layer's filters with the slot that places them.
        size: Number of units.
        normalize: ``"minmax"``, ``"mean"`` or ``"none"``; applied only where several layers meet.
        combine: ``"mean"``, ``"sum"`` or ``"max"`` over the layers.

    Returns:
        (size,) scores.
    """
    rows = [unit_scores(values, slot, size) for values, slot in members]
    if len(rows) == 1:
        return rows[0]
    stacked = torch.stack([normalized(row, normalize) for row in rows])
    if combine == "max":
        return stacked.amax(dim=0)
    return stacked.sum(dim=0) if combine == "sum" else stacked.mean(dim=0)
