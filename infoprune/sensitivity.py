"""Measure how much a model suffers when one channel group alone is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from infoprune.allocation.select import select
from infoprune.criteria import Scores
from infoprune.evaluate import Evaluate
from infoprune.structure import Structure, shrink
from infoprune.structure.tensors import copied

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup

AMOUNTS = (0.25, 0.5, 0.75)


def sensitivity(
    model: nn.Module, structure: Structure, scores: Scores, evaluate: Evaluate, amounts: Sequence[float] = AMOUNTS
) -> dict[str, dict[float, float]]:
    """Cut each group alone, measure the model, and go on with the next group.

    Args:
        model: The model that ``structure`` was traced from. It is not changed.
        structure: Its channel groups.
        scores: Which units of a group go first: the lowest.
        evaluate: Measures a model; the first of its figures is used. It runs once for each group and amount.
        amounts: Shares of a group's units to remove, in [0, 1).

    Returns:
        Group name -> amount -> the figure. Groups without scores are left out.

    Example:
        >>> import torch, infoprune
        >>> from infoprune.criteria import get_criterion
        >>> from infoprune.evaluate import output_change
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> images = torch.randn(2, 3, 8, 8)
        >>> structure = infoprune.trace(net, images)
        >>> figures = sensitivity(net, structure, get_criterion("l1")(net, structure), output_change(net, images))
        >>> list(figures["0"]), figures["0"][0.25] < figures["0"][0.75]
        ([0.25, 0.5, 0.75], True)
    """
    return {
        group.name: {
            amount: _figure(model, structure, scores, evaluate, group, amount)
            for amount in amounts
        }
        for group in structure.prunable
        if group.name in scores
    }  # fmt: skip


def _figure(
    model: nn.Module, structure: Structure, scores: Scores, evaluate: Evaluate, group: ChannelGroup, amount: float
) -> float:
    kept = max(1, round(group.size * (1 - amount)))
    smaller = copied(model)
    shrink(smaller, select(structure, scores, {group.name: kept}))
    return next(iter(evaluate(smaller).values()))
