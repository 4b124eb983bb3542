"""Collective steps of a run: all processes succeed or all stop, and scores are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from infoprune.errors import SurgeryError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.criteria import Scores

Result = TypeVar("Result")


def on_all_ranks(trainer: pl.Trainer, work: Callable[[], Result]) -> Result:
    """Run a function on every process; if it fails on one, stop all with its error instead of leaving them to wait.

    Raises:
        SurgeryError: another process failed; the message is its error. The one that failed raises its own.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    messages = _gather(trainer, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, text in enumerate(messages):
        if text is not None:
            raise SurgeryError(f"process {rank} failed at a pruning event, so all processes stop: {text}")
    return result


def _gather(trainer: pl.Trainer, value: Any) -> list[Any]:
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def mean_over_ranks(trainer: pl.Trainer, scores: Scores) -> Scores:
    """Return the mean of all processes' scores, the same on every process."""
    if trainer.world_size == 1 or not scores:
        return scores
    flat = torch.cat(list(scores.values())).to(trainer.strategy.root_device)
    mean = trainer.strategy.reduce(flat, reduce_op="mean")
    assert isinstance(mean, torch.Tensor)
    parts = mean.cpu().split([len(values) for values in scores.values()])
    return dict(zip(scores, parts, strict=True))
