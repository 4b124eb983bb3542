"""What a rehearsal finds: channels that the model's code does not let go."""

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
    """Labels that the model's code does not let go; the operator (-1: none in particular) and module that showed it.

    Where the code failed before it ran an operator, ``upcoming`` is the one that it had come to. Where it ran one whose
    sizes do not fit, ``asked`` holds the dimensions that are asked for in a wrong size, as far as that is known.
    ``like``: it did not happen in this module but in another that runs the same code.
    """

    labels: Labels
    reason: str
    op: int
    module: str
    upcoming: int = -1
    asked: tuple[Asked, ...] = ()
    like: bool = False
