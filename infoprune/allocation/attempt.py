"""`Attempt`: widths at some rounding, which becomes finer where it leaves a budget unspent or loses too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from infoprune.allocation.solve import Widths
from infoprune.errors import BudgetError

COARSE = 0.1
"""Rounding by itself becomes finer while it leaves more than this share of a budget unspent."""

COSTLY = 0.05
"""It also becomes finer while it adds more than this share to the loss that is expected without rounding."""


class Attempt(NamedTuple):
    """Widths that were found at some steps.

    Attributes:
        widths: Group name -> units.
        unspent: Share of the budget that they leave unspent.
        unmet: The target that was not reached, in words; empty if none.
        loss: Their expected loss, in the unit of the allocation; 0 if it does not measure a loss.
    """

    widths: Widths
    unspent: float = 0.0
    unmet: str = ""
    loss: float = 0.0


def finest_needed(
    step: Mapping[str, int],
    attempt: Callable[[Mapping[str, int]], Attempt],
    finer: Callable[[Mapping[str, int]], Mapping[str, int]] | None,
) -> Attempt:
    """Return the first attempt that spends most of the budget and loses little by rounding, with ever finer steps.

    Rounding is for speed. It becomes finer if it would leave a small network far below its budget, or if narrow layers
    would lose much information, as in deep cuts.

    Args:
        step: Group name -> the multiple that its width is rounded to, at first.
        attempt: Decides the widths at some steps.
        finer: Makes the steps finer, until they no longer change; None keeps them as they are.

    Raises:
        BudgetError: even the finest steps do not reach the budget.
    """

    @cache
    def without_rounding() -> Attempt:
        return attempt(dict.fromkeys(step, 1))

    def costly(made: Attempt) -> bool:
        return made.loss > 0 and made.loss > (1 + COSTLY) * without_rounding().loss

    while True:
        following = finer(step) if finer else step
        finest = following == step
        try:
            made = attempt(step)
        except BudgetError:
            if finest:
                raise
        else:
            if finest or (made.unspent <= COARSE and not costly(made)):
                return made
        step = following
