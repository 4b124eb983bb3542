"""Collective steps of a run: all processes succeed or all stop, and scores are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from infoprune.distributed import all_or_none, mean_over_processes

if TYPE_CHECKING:
    from infoprune.criteria import Scores

Result = TypeVar("Result")


def on_all_ranks(work: Callable[[], Result]) -> Result:
    """Run a function on every process; if it fails on one, stop all with its error instead of leaving them to wait.

    Raises:
        ProcessError: another process failed; the message is its error. The one that failed raises its own.
    """
    with all_or_none():
        return work()


def mean_over_ranks(scores: Scores) -> Scores:
    """Return the mean of all processes' scores, the same on every process."""
    if not scores:
        return scores
    mean = mean_over_processes(torch.cat([values.double() for values in scores.values()]), 1.0)
    parts = mean.split([len(values) for values in scores.values()])
    return {name: part.to(scores[name]) for name, part in zip(scores, parts, strict=True)}
