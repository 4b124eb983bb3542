"""Work on several processes: each looks at its share of the images, sums meet here, and an error stops all.

A process that fails between two collectives would leave the others waiting in the next one until the group's timeout,
and its error would be lost. So inside :func:`all_or_none` every collective begins with one small sum, in which each
process says whether it is well. A process that fails joins that sum instead, and the others raise its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from infoprune.errors import ProcessError

Result = TypeVar("Result")

_TOLD = "_infoprune_told"
"""Marks an error that the other processes know of."""

_blocks = 0
"""In how many blocks of :func:`all_or_none` this process is."""


def world_size() -> int:
    """Return the number of processes that score together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """Return the number of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def all_or_none() -> Iterator[None]:
    """Fail on all processes within seconds if the work inside fails on one. Blocks may lie within each other.

    All processes have to enter and leave it together. Collectives inside are to be those of this module, or to follow
    :func:`check_processes`.

    Raises:
        ProcessError: another process failed; the message is its error. The one that failed raises its own.

    Example:
        >>> with all_or_none():  # on one process, nothing but the work itself
        ...     total = sum_over_processes(torch.ones(2))
    """
    global _blocks
    _blocks += 1
    try:
        yield
        check_processes()
    except Exception as error:
        if not hasattr(error, _TOLD):
            _meet(error)
        raise
    finally:
        _blocks -= 1


def check_processes() -> None:
    """Raise the error of a process that has failed inside :func:`all_or_none`; a collective call.

    Raises:
        ProcessError: another process failed; the message is its error.
    """
    if _blocks:
        _meet(None)


def _meet(error: Exception | None) -> None:
    """Exchange with the other processes whether each one has failed."""
    if error is not None:
        error.__dict__[_TOLD] = True
    if world_size() == 1 or _all_reduced(torch.tensor(float(error is not None), dtype=torch.float64)) == 0:
        return
    texts: list[str | None] = [None] * world_size()
    dist.all_gather_object(texts, None if error is None else f"{type(error).__name__}: {error}")
    if error is None:
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
        failure = ProcessError(f"process {rank} failed, so all processes stop: {text}")
        failure.__dict__[_TOLD] = True
        raise failure


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a float64 tensor over all processes; the tensor itself on one.

    Args:
        values: a float64 tensor of one shape on all processes.
    """
    check_processes()
    return _all_reduced(values)


def broadcast_from_first(value: Result) -> Result:
    """Return the first process's value, which has to be picklable, on all processes.

    Args:
        value: the value on this process.
    """
    check_processes()
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _all_reduced(values: Tensor) -> Tensor:
    if world_size() == 1:
        return values
    moved = values.to(_device())
    dist.all_reduce(moved)
    return moved.to(values.device)


def mean_over_processes(total: Tensor, count: float) -> Tensor:
    """Return the sum of all processes' totals over the sum of their counts.

    Args:
        total: this process's sum, of the same shape on all processes.
        count: how many values it is the sum of.
    """
    return sum_over_processes(total) / sum_over_processes(torch.tensor(float(count), dtype=torch.float64))


def on_all_ranks(work: Callable[[], Result]) -> Result:
    """Run a function on every process; if it fails on one, stop all with its error instead of leaving them to wait.

    Args:
        work: the function.

    Returns:
        What the function returns.

    Raises:
        ProcessError: another process failed; the message is its error. The one that failed raises its own.
    """
    with all_or_none():
        return work()


def failed_only_by(error: Exception, *kinds: type[Exception]) -> bool:
    """Return whether all processes have failed, each by an error of some kinds or because another did.

    A collective call for the handler of an error that :func:`on_all_ranks` or :func:`all_or_none` has raised.

    Args:
        error: this process's.
        kinds: classes of errors.
    """
    other = not isinstance(error, (*kinds, ProcessError))
    return float(sum_over_processes(torch.tensor(float(other), dtype=torch.float64))) == 0


def mean_over_ranks(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of all processes' scores, the same on every process.

    Args:
        scores: group name -> (units,) scores of this process.
    """
    if not scores:
        return scores
    mean = mean_over_processes(torch.cat([values.double() for values in scores.values()]), 1.0)
    parts = mean.split([len(values) for values in scores.values()])
    return {name: part.to(scores[name]) for name, part in zip(scores, parts, strict=True)}


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """Return the rows of all processes one below the other, in order of rank; counts may differ.

    Args:
        rows: (n, ...) rows of this process.
    """
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.float64)
    counts[process()] = len(rows)
    counts = sum_over_processes(counts).long()
    padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded, device=_device()) for _ in range(world_size())]
    dist.all_gather(gathered, padded.to(_device()))
    return torch.cat([part[:count].to(rows.device) for part, count in zip(gathered, counts.tolist(), strict=True)])


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
