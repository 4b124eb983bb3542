"""What a rehearsal finds: channels that the model's code does not let go."""

from __future__ import annotations

from dataclasses import dataclass

from infoprune.structure.labels import Labels

FIXED = "its size is fixed in the model's code"
FACTOR = "a factor is computed from its width"
"""The reasons where a size does not follow a cut, and where a factor does."""


@dataclass(frozen=True)
class Blame:
    """Labels that the model's code does not let go; the operator (-1: none in particular) and module that showed it.

    Where the code failed before it ran an operator, ``upcoming`` is the one that it had come to; where it ran one that
    does not fit, ``asked`` are the whole numbers among that one's arguments.
    """

    labels: Labels
    reason: str
    op: int
    module: str
    upcoming: int = -1
    asked: tuple[int, ...] = ()
