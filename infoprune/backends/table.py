"""Measure the time of single layers by kind and widths, and cache it on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.backends.backend import Backend
from infoprune.backends.layers import LayerKind
from infoprune.files import write_text_whole

SHARES = (0.25, 1.0)
"""Widths that are measured, as shares of the full width; between them times are interpolated."""

RUNS = 5

AT_ONCE = 2**26
"""Layers are built and timed together until their weights and inputs take so many bytes."""

FORMAT = 2
"""Number of the way in which layers are timed; times of another way are not read."""


class LatencyTable:
    """Seconds of layers in a backend, on this machine with the present number of threads.

    Times are kept in ``$INFOPRUNE_CACHE`` (by default ``~/.cache/infoprune``), in a file for each machine, backend and
    its versions. Deleting it only costs the time to measure again.

    Args:
        backend: Where layers are timed.
        device: Of the layers.
    """

    def __init__(self, backend: Backend, device: torch.device | None = None) -> None:
        self.backend = backend
        self.device = device or torch.device("cpu")
        self.path = cache_file(backend, self.device)
        self.seconds: dict[str, float] = _read(self.path)
        self._known = len(self.seconds)

    def measure(self, networks: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]], runs: int = RUNS) -> None:
        """Time those of some networks that are not in the table.

        Args:
            networks: Key -> function that builds a network and an input for it.
            runs: Measured runs of each.
        """
        missing = [(key, build) for key, build in networks.items() if key not in self.seconds]
        for batch in _batches(missing):
            examples = [(network.eval().to(self.device), x.to(self.device)) for network, x in batch.values()]
            self.seconds |= zip(batch, self.backend.seconds_of(examples, runs), strict=True)

    def curves(self, layers: Sequence[tuple[LayerKind, int, int]]) -> list[Callable[[int, int], float]]:
        """Return the seconds of layers as functions of their input and output channels, up to the given ones.

        Args:
            layers: Kind, most input channels and most output channels of each layer.
        """
        points = {
            point: partial(point[0].build, *point[1:])
            for layer in layers
            for point in product((layer[0],), *_lattices(*layer))
        }
        self.measure({_key(*point): build for point, build in points.items()})
        return [self._curve(*layer) for layer in layers]

    def _curve(self, kind: LayerKind, inputs: int, outputs: int) -> Callable[[int, int], float]:
        across, along = _lattices(kind, inputs, outputs)
        grid = {(i, o): self.seconds[_key(kind, i, o)] for i, o in product(across, along)}

        # A narrower layer counts as no slower than a wider one: its weights could be padded with zeros.
        grid = {(i, o): min(grid[a, b] for a, b in grid if a >= i and b >= o) for i, o in grid}

        def seconds(i: int, o: int) -> float:
            (i0, i1, x), (o0, o1, y) = _between(across, i), _between(along, o)
            low = (1 - y) * grid[i0, o0] + y * grid[i0, o1]
            high = (1 - y) * grid[i1, o0] + y * grid[i1, o1]
            return (1 - x) * low + x * high

        return seconds

    def keep(self) -> None:
        """Write the measurements to disk, if possible."""
        if len(self.seconds) == self._known:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have measured other layers since.
            write_text_whole(self.path, json.dumps(_read(self.path) | self.seconds, indent=0, sort_keys=True))
        except OSError:
            return  # if the cache cannot be written, the next call measures again; this result is still valid


def cache_file(backend: Backend, device: torch.device) -> Path:
    """Return the file that stores the times of a backend on this machine.

    Args:
        backend: the backend.
        device: the device that runs the model.
    """
    home = os.environ.get("INFOPRUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "infoprune")
    what = [
        FORMAT,
        platform.node(),
        platform.machine(),
        _processor(device),
        torch.get_num_threads(),
        backend.versions,
        backend,
    ]
    digest = hashlib.sha256("|".join(map(str, what)).encode()).hexdigest()[:16]
    return Path(home).expanduser() / f"latency-{backend.name}-{digest}.json"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} {platform.processor()}"


def _read(path: Path) -> dict[str, float]:
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {str(key): value for key, value in kept.items() if isinstance(value, float) and 0 < value < float("inf")}


def _key(kind: LayerKind, inputs: int, outputs: int) -> str:
    return f"{kind}: {inputs} to {outputs}"


def _batches(
    networks: Sequence[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]],
) -> Iterator[dict[str, tuple[nn.Module, Tensor]]]:
    """Build networks and yield them some at a time, so that their weights and inputs fit into memory."""
    batch: dict[str, tuple[nn.Module, Tensor]] = {}
    size = 0
    for key, build in networks:
        network, example = batch[key] = build()
        size += sum(tensor.nbytes for tensor in (example, *network.parameters()))
        if size > AT_ONCE:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _lattices(kind: LayerKind, inputs: int, outputs: int) -> tuple[list[int], list[int]]:
    """Return the input and output channels at which a layer is timed."""
    across, along = _lattice(inputs), _lattice(outputs)
    return across[-1:] if kind.name == "depthwise" else across, along


def _lattice(width: int) -> list[int]:
    """Return widths to measure, in multiples that no backend punishes where the layer is wide enough."""
    step = 16 if width >= 64 else 4 if width >= 16 else 1
    return sorted({max(step, round(width * share / step) * step) for share in SHARES[:-1]} | {width})


def _between(points: list[int], value: int) -> tuple[int, int, float]:
    """Return the two points around a value, and how far it is from the one to the other."""
    if value <= points[0]:
        return points[0], points[0], 0.0
    place = next((n for n in range(1, len(points) - 1) if value <= points[n]), len(points) - 1)
    low, high = points[place - 1], points[place]
    return low, high, (value - low) / (high - low)
