"""Numbers in modules that are taken for head counts or widths, until a dry run tells whether they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infoprune.structure.groups import AttributeSlot


@dataclass
class Heads:
    """Parts of a dimension of one module (attention heads) that go as wholes, their number an attribute of it.

    ``others``: further attributes that may be their number; ``doubtful``: there were any.
    """

    attribute: str
    count: int
    others: Sequence[str]
    doubtful: bool
    tied: bool = False


class Candidate(NamedTuple):
    """A number that may be the width of a dimension, because an operator was asked for that size."""

    path: str
    op: int
    place: int

    @property
    def attribute(self) -> str:
        """Return the name of the attribute in its module."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Rewrite:
    """A number that follows a cut: its dimension, and the candidate that explained it.

    ``guessed``: because a module failed that runs the same code, not yet its own.
    """

    slot: AttributeSlot
    candidate: Candidate
    guessed: bool
