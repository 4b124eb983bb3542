"""Turn scores and widths into a plan that removes the units with the lowest scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from infoprune.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.structure import PruningPlan, Structure


def lowest_units(scores: torch.Tensor, count: int) -> list[int]:
    """Return the ``count`` units with the lowest scores, ascending; of equal scores the higher index goes first.

    Args:
        scores: (units,) scores.
        count: How many units to return.

    >>> lowest_units(torch.tensor([1.0, 0.0, 2.0, 0.0]), 1)
    [3]
    """
    best_first = torch.argsort(scores, descending=True, stable=True)
    return sorted(best_first[len(scores) - count :].tolist())


def select(structure: Structure, scores: Scores, widths: Mapping[str, int]) -> PruningPlan:
    """Return the plan that brings every group to its width by removing the units with the lowest scores.

    Args:
        structure: The structure of the model that the plan is for.
        scores: Group name -> (units,) scores, higher = keep.
        widths: Group name -> units to keep, at least 1; a group that is not named keeps all.

    Raises:
        ConfigurationError: a width is outside 1..size, a group is unknown or frozen, or has no scores of its size.
    """
    removed = {}
    for name, width in widths.items():
        group = structure.group(name)
        if not 1 <= width <= group.size:
            raise ConfigurationError(f"group {name}: cannot keep {width} of {group.size} units; keep at least 1")
        if width == group.size:
            continue
        if group.frozen:
            raise ConfigurationError(f"group {name} is frozen ({group.reason}) and cannot be cut to {width} units")
        if name not in scores:
            raise ConfigurationError(
                f"group {name} has no scores and cannot be cut to {width} units{nearest(name, scores)}"
            )
        if scores[name].shape != (group.size,):
            raise ConfigurationError(
                f"group {name}: {tuple(scores[name].shape)} scores for {group.size} units; score the structure as it is"
            )
        removed[name] = lowest_units(scores[name], group.size - width)
    return structure.plan(removed)
