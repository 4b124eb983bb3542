"""Measure latency, throughput and memory of several models in turns, against drifts of load."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from infoprune.allocation import Budget, get_allocation, select
from infoprune.allocation.rounding import AUTO
from infoprune.backends.backend import BackendSpec, get_backend
from infoprune.calibration import evaluating
from infoprune.inputs import Inputs, call_model
from infoprune.registry import check_count
from infoprune.shapes import batch_size
from infoprune.structure import shrink, trace
from infoprune.structure.tensors import copied

RESAMPLES = 1000


@dataclass(frozen=True)
class Speed:
    """The speed of a model on given inputs.

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
        """Return how many times the median of the other fits this one's.

        Args:
            other: the speed to compare with.

        Example:
            >>> Speed((1.0, 2.0, 1.0), 1, 0).times_as_fast_as(Speed((2.0, 4.0, 3.0), 1, 0))
            3.0
        """
        return other.median / self.median

    def interval(self, other: Speed) -> tuple[float, float]:
        """Return the 95 % interval of `times_as_fast_as`: the bootstrap over rounds, in which both were timed.

        Args:
            other: the speed to compare with, timed in the same rounds.

        Example:
            >>> Speed((1.0, 2.0, 1.0), 1, 0).interval(Speed((2.0, 4.0, 2.0), 1, 0))
            (2.0, 2.0)
        """
        draws = np.random.default_rng(0).integers(len(self.seconds), size=(RESAMPLES, len(self.seconds)))
        own, others = (np.median(np.array(speed.seconds)[draws], axis=1) for speed in (self, other))
        low, high = np.quantile(others / own, (0.025, 0.975))
        return float(low), float(high)


def side_by_side(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    repeats: int = 20,
    warmup: int = 3,
    memory: bool = True,
    backend: BackendSpec = "eager",
) -> dict[str, Speed]:
    """Measure models on the same inputs, in eval mode without gradients, one forward pass each in turn.

    Args:
        models: name -> model, all on the device of the inputs; nothing of them is changed.
        inputs: what to run them on: the batch size matters.
        repeats: measured rounds.
        warmup: passes of each model before the first round.
        memory: whether to measure peak memory too (one more pass each, in PyTorch).
        backend: where to run them; see `infoprune.latency`.

    Returns:
        Name -> figures.

    Example:
        >>> narrow, wide = nn.Linear(8, 8), nn.Linear(8, 4096)
        >>> speeds = side_by_side({"narrow": narrow, "wide": wide}, torch.zeros(4, 8), repeats=3)
        >>> speeds["narrow"].batch, speeds["narrow"].weight_bytes, speeds["wide"].peak_bytes
        (4, 288, 65536)
    """
    check_count("speed", "repeats", repeats, 1)
    runs = {name: get_backend(backend).load(model, inputs) for name, model in models.items()}
    for run in runs.values():
        for _ in range(warmup):
            run()
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
    seconds = {name: [times[name] for times in rounds] for name in models}
    return {
        name: Speed(
            tuple(seconds[name]), batch_size(inputs), _bytes(model), peak_memory(model, inputs) if memory else None
        )
        for name, model in models.items()
    }


def peak_memory(model: nn.Module, inputs: Inputs) -> int:
    """Return the most bytes that a forward pass holds at once, beyond weights and inputs.

    On CUDA what its allocator hands out: activations and scratch space. On the CPU activations alone: the outputs of
    operators, for as long as somebody holds them.

    Args:
        model: any module, in the mode that it is to run in.
        inputs: what its forward takes.

    >>> peak_memory(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), torch.zeros(2, 8))
    256
    """
    with evaluating(model), torch.no_grad():
        if next((parameter.is_cuda for parameter in model.parameters()), False):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call_model(model, inputs)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        own = [*model.parameters(), *model.buffers(), *tree_flatten(inputs)[0]]
        with _Held(tensor for tensor in own if isinstance(tensor, Tensor)) as held:
            call_model(model, inputs)
    return held.peak


class _Held(TorchDispatchMode):
    """Track the memory of operators' outputs."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in tree_flatten(outputs)[0]:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return outputs


def uniformly_narrowed(model: nn.Module, inputs: Inputs, macs: float) -> nn.Module:
    """Return a copy of a model whose groups all keep the same share, down to a share of its MACs: a control for speed.

    Args:
        model: it is not changed.
        inputs: example inputs.
        macs: share of the multiply-accumulates to keep, in (0, 1].
    """
    narrow = copied(model)
    structure = trace(narrow, inputs)
    widths = get_allocation("uniform").widths(structure, None, Budget("macs", macs), round_to=AUTO)
    scores = {group.name: torch.zeros(group.size) for group in structure.prunable}
    shrink(narrow, select(structure, scores, widths))
    return narrow


def _bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
