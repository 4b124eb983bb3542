"""How long a forward pass takes: one model in a backend, or two against each other."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infoprune.backends.backend import BackendSpec, Run, get_backend
from infoprune.registry import check_count

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs

PRECISION = 0.004
"""Relative standard error of a measured share that is good enough."""

MOST = 2
"""At most so many times the asked pairs of runs are spent on it."""

FEWEST = 7
"""Pairs of runs that show how much the times scatter."""

CLEAR = 4
"""A share that is so many standard errors away from the target need not be known better."""


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass: the median over ``repeats`` runs and the distance between their quartiles."""

    median: float
    spread: float
    repeats: int


def latency(
    model: nn.Module, example_inputs: Inputs, repeats: int = 20, warmup: int = 3, backend: BackendSpec = "eager"
) -> Latency:
    """Measure a model's forward pass, in eval mode without gradients; nothing of it is changed.

    With one CPU thread (``torch.set_num_threads(1)``) it is the processor time of this process, which other programs
    do not lengthen; else the time on the clock. Backends on the CPU take as many threads as PyTorch has.

    Args:
        model: The model, on the device of ``example_inputs``.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        repeats: Measured runs.
        warmup: Runs before them.
        backend: Where to run it: ``"eager"``, ``"compile"``, ``"onnxruntime"``, ``"openvino"``, ``"executorch"``, or a
            function from a model and its inputs to seconds.

    Raises:
        ConfigurationError: an unknown backend, or one that is not installed.
        ExportError: the backend cannot take the model.
    """
    check_count("latency", "repeats", repeats, 1)
    run = get_backend(backend).load(model, example_inputs)
    seconds = [run() for _ in range(warmup + repeats)][warmup:]
    low, median, high = statistics.quantiles(seconds, n=4) if repeats > 1 else seconds * 3
    return Latency(median, high - low, repeats)


def timed(function: Callable[[], object], on_the_wall: bool = False) -> float:
    """Return the seconds that a call takes, on the clock on the wall where devices other than the CPU work."""
    clock = time.perf_counter if on_the_wall or torch.get_num_threads() > 1 else time.process_time
    start = clock()
    function()
    return clock() - start


def paired_ratios(run: Run, reference: Run, repeats: int, target: float | None = None) -> list[float]:
    """Return the time of one model over that of another, in as many pairs of runs as it takes to know it.

    That is at least ``repeats``, unless the ratio is clearly below or above ``target``. The two take turns at being
    first, so that what else the machine does meets both.
    """
    ratios: list[float] = []
    while not _known(ratios, repeats, target):
        if len(ratios) % 2:
            seconds, of_reference = run(), reference()
        else:
            of_reference, seconds = reference(), run()
        ratios.append(seconds / of_reference)
    return ratios


def _known(ratios: Sequence[float], repeats: int, target: float | None) -> bool:
    error = _standard_error(ratios)
    if len(ratios) >= repeats and (error <= PRECISION or len(ratios) >= MOST * repeats):
        return True
    return (
        target is not None
        and len(ratios) >= FEWEST
        and abs(statistics.median(ratios) / target - 1) > max(CLEAR * error, CLEAR * PRECISION)
    )


def _standard_error(ratios: Sequence[float]) -> float:
    """Return the standard error of the median, relative to it, from the quartiles, which outliers leave alone."""
    if len(ratios) < 2:
        return 0.0
    low, median, high = statistics.quantiles(ratios, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)) / median
