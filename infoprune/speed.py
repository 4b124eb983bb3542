"""Latency, throughput and memory of several models, measured in turns so that all see the same weather."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from infoprune.allocation import Budget, get_allocation, select
from infoprune.cost import latency
from infoprune.criteria.calibration import evaluating
from infoprune.registry import check_count
from infoprune.shapes import batch_size
from infoprune.structure import shrink, trace
from infoprune.structure.tracer import Inputs, call


@dataclass(frozen=True)
class Speed:
    """How fast a model is on given inputs.

    Attributes:
        seconds: of each measured forward pass, in the order of the rounds.
        batch: examples in the inputs.
        weight_bytes: parameters and buffers.
        peak_bytes: most memory that a forward pass held at once beyond weights and inputs; None if not measured.
    """

    seconds: tuple[float, ...]
    batch: int
    weight_bytes: int
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median seconds of a forward pass."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, in seconds."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return high - low

    @property
    def throughput(self) -> float:
        """Examples per second."""
        return self.batch / self.median

    def times_as_fast_as(self, other: Speed) -> float:
        """The median over the rounds of the other's time divided by this one's.

        >>> Speed((1.0, 2.0, 1.0), 1, 0).times_as_fast_as(Speed((2.0, 4.0, 3.0), 1, 0))
        2.0
        """
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def side_by_side(
    models: Mapping[str, nn.Module], inputs: Inputs, repeats: int = 20, warmup: int = 3, memory: bool = True
) -> dict[str, Speed]:
    """Measure models on the same inputs, in eval mode without gradients, one forward pass each in turn.

    Args:
        models: name -> model, all on the device of the inputs; nothing of them is changed.
        inputs: what to run them on: the batch size matters.
        repeats: measured rounds.
        warmup: passes of each model before the first round.
        memory: whether to measure peak memory too (one more pass each).

    Returns:
        Name -> figures.

    Example:
        >>> narrow, wide = nn.Linear(8, 8), nn.Linear(8, 4096)
        >>> speeds = side_by_side({"narrow": narrow, "wide": wide}, torch.zeros(4, 8), repeats=3)
        >>> speeds["narrow"].batch, speeds["narrow"].weight_bytes, speeds["wide"].peak_bytes
        (4, 288, 65536)
    """
    check_count("speed", "repeats", repeats, 1)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        latency(model, inputs, repeats=1, warmup=warmup)
    for _ in range(repeats):
        for name, model in models.items():
            seconds[name].append(latency(model, inputs, repeats=1, warmup=0).median)
    return {
        name: Speed(
            tuple(seconds[name]), batch_size(inputs), _bytes(model), peak_memory(model, inputs) if memory else None
        )
        for name, model in models.items()
    }


def peak_memory(model: nn.Module, inputs: Inputs) -> int:
    """Most bytes that a forward pass holds at once, beyond weights and inputs: activations and scratch space.

    On the CPU what PyTorch's allocator hands out is counted; what libraries allocate past it is not seen.
    """
    with evaluating(model), torch.no_grad():
        if next((parameter.is_cuda for parameter in model.parameters()), False):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call(model, inputs)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call(model, inputs)
    held = peak = 0
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def uniformly_narrowed(model: nn.Module, inputs: Inputs, macs: float) -> nn.Module:
    """A copy of a model whose groups all keep the same share, down to a share of its MACs: a control for speed.

    Args:
        model: it is not changed.
        inputs: example inputs.
        macs: share of the multiply-accumulates to keep, in (0, 1].
    """
    narrow = copy.deepcopy(model)
    structure = trace(narrow, inputs)
    widths = get_allocation("uniform").widths(structure, None, Budget("macs", macs))
    scores = {group.name: torch.zeros(group.size) for group in structure.prunable}
    shrink(narrow, select(structure, scores, widths))
    return narrow


def _bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
