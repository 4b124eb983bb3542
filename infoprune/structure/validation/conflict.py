"""Conflicts: channels whose removal changes how the model's code runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from infoprune.structure.labels import Labels

FIXED = "its size is fixed in the model's code"
FACTOR = "a factor is computed from its width"
ARGUMENT = "an argument of an operator is computed from its width"
MISPLACED = "which channels it takes does not follow a cut"
"""The reasons where a size does not follow a cut, and where a factor or another argument does."""

COMPUTED = (FACTOR, ARGUMENT)
"""The reasons where code computes something from a width."""


class Asked(NamedTuple):
    """A dimension for which the code requests a wrong size: its place among the operator's results, and the size."""

    axis: Labels
    place: int
    size: int


@dataclass(frozen=True)
class Conflict:
    """Labels whose removal changes how the model's code runs.

    Attributes:
        labels: the labels that a plan removed.
        reason: why they cannot go, in words.
        op: number of the operator that shows the conflict; -1: none in particular.
        module: path of the module that shows it.
        upcoming: where the code failed before it ran an operator, the number of the next one; else -1.
        asked: the dimensions that the operator asks for in a wrong size, as far as that is known.
        in_sibling: whether it was found in a sibling, another module that runs the same code, and not in this one.
    """

    labels: Labels
    reason: str
    op: int
    module: str
    upcoming: int = -1
    asked: tuple[Asked, ...] = ()
    in_sibling: bool = False

    @property
    def asking(self) -> int:
        """The number of the operator that asked for a size: where the code failed, the one to come; -1: unknown."""
        return max(self.op, self.upcoming)
