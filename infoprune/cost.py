"""What a model costs: multiply-accumulates, parameters, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# A little less than the largest block (32 MiB) whose release makes glibc keep what is freed later.
KEEPS_MEMORY = 31 * 2**20


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates (MACs) for one example, and parameters.

    Convolutions, linear layers and the matrix products of attention count, as in PyTorch's ``FlopCounterMode``. The
    papers' tables call MACs "FLOPs".
    """

    macs: int
    params: int

    def ratio(self, original: Cost) -> tuple[float, float]:
        """The share of the original's MACs and parameters that is left.

        >>> Cost(50, 10).ratio(Cost(100, 40))
        (0.5, 0.25)
        """
        return self.macs / max(original.macs, 1), self.params / max(original.params, 1)


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass: the median over ``repeats`` runs and the distance between their quartiles."""

    median: float
    spread: float
    repeats: int


def latency(model: nn.Module, example_inputs: Any, repeats: int = 20, warmup: int = 3) -> Latency:
    """Measure a model's forward pass where it is, in eval mode without gradients; nothing of it is changed.

    On the CPU, memory of activations is kept between the runs, as in a process that has served a model for a while.

    Args:
        model: the model, on the device of ``example_inputs``.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        repeats: measured runs.
        warmup: runs before them.
    """
    flags = [(module, module.training) for module in model.modules()]
    cuda = next((p.is_cuda for p in model.parameters()), False)
    seconds = []
    _keep_freed_memory()
    try:
        model.eval()
        with torch.no_grad():
            for run in range(warmup + repeats):
                start = _now(cuda)
                _call(model, example_inputs)
                if run >= warmup:
                    seconds.append(_now(cuda) - start)
    finally:
        for module, training in flags:
            module.training = training
    low, median, high = statistics.quantiles(seconds, n=4) if repeats > 1 else seconds * 3
    return Latency(median, high - low, repeats)


def _keep_freed_memory() -> None:
    """Whether glibc hands activations back after every run depends on what the process freed before: decide it.

    The threshold grows with the largest block of up to 32 MiB that was ever freed. Until it has, a third of a forward
    pass on the CPU can go into asking for the same pages anew, and the times scatter by a fifth.
    """
    torch.empty(KEEPS_MEMORY, dtype=torch.uint8)


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
