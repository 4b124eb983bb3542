"""Conflicts that a dry run finds: channels without which the model's code does not run as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from infoprune.structure.labels import Labels

FIXED = "its size is fixed in the model's code"
FACTOR = "a factor is computed from its width"
"""The reasons where a size does not follow a cut, and where a factor does."""


class Asked(NamedTuple):
    """A dimension that the code asks for in a wrong size, its place among those that the operator makes, that size."""

    axis: Labels
    place: int
    size: int


@dataclass(frozen=True)
class Conflict:
    """Labels without which the model's code does not run as before.

    Attributes:
        labels: the labels that a plan removed.
        reason: why they cannot go, in words.
        op: number of the operator that shows the conflict; -1: none in particular.
        module: path of the module that shows it.
        upcoming: where the code failed before it ran an operator, the number of the next one; else -1.
        asked: the dimensions that the operator asks for in a wrong size, as far as that is known.
        like: whether it happened not in this module but in a sibling, which runs the same code.
    """

    labels: Labels
    reason: str
    op: int
    module: str
    upcoming: int = -1
    asked: tuple[Asked, ...] = ()
    like: bool = False
