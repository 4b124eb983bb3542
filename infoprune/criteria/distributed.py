"""Scoring on several processes: each looks at its share of the images, and sums meet here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from infoprune.errors import DataError


def world_size() -> int:
    """Number of processes that score together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def all_or_none() -> Iterator[None]:
    """If the work inside fails on one process, it fails on all, instead of leaving the others to wait for its sums."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = sum_over_processes(torch.tensor(float(failure is not None), dtype=torch.float64))
    if failure is not None:
        raise failure
    if failed > 0:
        raise DataError(f"scoring failed on {int(failed)} other processes; see their messages")


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a float64 tensor over all processes; the tensor itself on one."""
    if world_size() == 1:
        return values
    moved = values.to(_device())
    dist.all_reduce(moved)
    return moved.to(values.device)


def mean_over_processes(total: Tensor, count: float) -> Tensor:
    """The sum of all processes' totals over the sum of their counts."""
    return sum_over_processes(total) / sum_over_processes(torch.tensor(float(count), dtype=torch.float64))


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes one below the other, in order of rank; counts may differ."""
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
