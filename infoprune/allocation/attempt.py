"""`Attempt`: widths at some rounding, which becomes finer where it leaves too much of a budget unspent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from infoprune.allocation.solve import Widths
from infoprune.errors import BudgetError

COARSE = 0.1
"""Rounding by itself becomes finer while it leaves more than this share of a budget unspent."""


class Attempt(NamedTuple):
    """Widths that were found at some steps.

    Attributes:
        widths: Group name -> units.
        unspent: Share of the budget that they leave unspent.
        unmet: What was not reached, in words; empty if nothing.
    """

    widths: Widths
    unspent: float = 0.0
    unmet: str = ""


def finest_needed(
    step: Mapping[str, int],
    attempt: Callable[[Mapping[str, int]], Attempt],
    finer: Callable[[Mapping[str, int]], Mapping[str, int]] | None,
) -> Attempt:
    """Return the first attempt that spends most of the budget, with ever finer steps, or the last one.

    Rounding is for speed, so it is left out where it would leave a small network far below its budget.

    Args:
        step: Group name -> what its width is a multiple of, at first.
        attempt: Decides the widths at some steps.
        finer: Makes the steps finer, until they no longer change; None keeps them as they are.

    Raises:
        BudgetError: even the finest steps do not reach the budget.
    """
    following = finer(step) if finer else step
    try:
        made = attempt(step)
    except BudgetError:
        if following == step:
            raise
        return finest_needed(following, attempt, finer)
    return made if made.unspent <= COARSE or following == step else finest_needed(following, attempt, finer)
