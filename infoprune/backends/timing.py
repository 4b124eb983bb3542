"""Time the forward pass of one model in a backend, or of two models against each other."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infoprune.backends.backend import BackendSpec, Run, get_backend
from infoprune.errors import ConfigurationError
from infoprune.inputs import advice_on
from infoprune.registry import check_count
from infoprune.structure.tensors import check_model

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs

CERTAIN = 2
"""Standard errors on each side of an estimate that its 95 % interval reaches."""


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass: the median over ``repeats`` runs and the distance between their quartiles."""

    median: float
    spread: float
    repeats: int


def latency(
    model: nn.Module, example_inputs: Inputs, repeats: int = 20, warmup: int = 3, backend: BackendSpec = "eager"
) -> Latency:
    """Measure a model's forward pass, in eval mode without gradients; the model is not changed.

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
    check_count("latency", "warmup", warmup, 0)
    check_model(model)
    run = get_backend(backend).load(model, example_inputs)
    try:
        seconds = [run() for _ in range(warmup + repeats)][warmup:]
    except (RuntimeError, TypeError) as error:
        advice = advice_on(model, example_inputs)
        if not advice:
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"latency: the model failed on the example inputs: {reason}{advice}") from error
    low, median, high = statistics.quantiles(seconds, n=4) if repeats > 1 else seconds * 3
    return Latency(median, high - low, repeats)


def timed(function: Callable[[], object], on_the_wall: bool = False) -> float:
    """Return the seconds that a call takes, in wall-clock time if asked for or if PyTorch uses several threads.

    Args:
        function: the call.
        on_the_wall: use the wall clock instead of processor time.
    """
    clock = time.perf_counter if on_the_wall or torch.get_num_threads() > 1 else time.process_time
    start = clock()
    function()
    return clock() - start


class PairedRuns:
    """The time of one model over that of another, in pairs of runs.

    The two take turns at being first, so that what else the machine does meets both.

    Args:
        run: The model in question.
        reference: The other one.

    Example:
        >>> pairs = PairedRuns(lambda: 3.0, lambda: 4.0)
        >>> pairs.more(5)
        >>> pairs.share, pairs.error, pairs.seconds
        (0.75, 0.0, 35.0)
    """

    def __init__(self, run: Run, reference: Run) -> None:
        self._run, self._reference = run, reference
        self.ratios: list[float] = []
        self.seconds = 0.0

    def more(self, pairs: int) -> None:
        """Run the two models in turn some more times.

        Args:
            pairs: number of pairs.
        """
        for _ in range(pairs):
            if len(self.ratios) % 2:
                own, other = self._run(), self._reference()
            else:
                other, own = self._reference(), self._run()
            self.ratios.append(own / other)
            self.seconds += own + other

    @property
    def share(self) -> float:
        """The median over the pairs."""
        return statistics.median(self.ratios)

    @property
    def error(self) -> float:
        """Half of the 95 % interval of the share, relative to it; from the quartiles, which outliers leave alone."""
        if len(self.ratios) < 2:
            return 0.0
        low, median, high = statistics.quantiles(self.ratios, n=4)
        return CERTAIN * 1.2533 * (high - low) / 1.349 / math.sqrt(len(self.ratios)) / median
