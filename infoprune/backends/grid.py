"""Measure for each kind of layer which multiples of channels are fast in a backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from infoprune.allocation.rounding import AUTO, in_units, steps, unit_widths
from infoprune.backends.backend import Backend
from infoprune.backends.table import LatencyTable

if TYPE_CHECKING:
    from infoprune.structure import Structure

STEPS = (1, 2, 4, 8, 16, 32)
WIDTHS = {1: (91, 101), 2: (90, 102), 4: (92, 100), 8: (88, 104), 16: (80, 112), 32: (64, 96, 128)}
"""Step -> widths that are multiples of it and of no larger one. Those of the last are the measure of the others."""

WORTH = 0.05
"""A coarser step has to save so much of the time: the finer follows scores more closely."""

FEWEST = 3
"""A step is at most so small a part of a layer: 1/3."""

RUNS = 25


KINDS = ("conv", "depthwise", "linear")


def grid_of(backend: Backend, device: torch.device | None = None, kinds: Collection[str] = KINDS) -> dict[str, int]:
    """Return the step that pays for each kind of layer: ``"conv"``, ``"depthwise"`` and ``"linear"``.

    Small networks of some widths around 96 are timed. Of the steps that are within 5 % of the fastest at equal work,
    the smallest is chosen. The times are kept on the disk; see `infoprune.backends.table`.

    Args:
        backend: One in which single layers are timed (``quick_to_load``).
        device: Where to measure.
        kinds: Those that are wanted.
    """
    table = LatencyTable(backend, device)
    widths = sorted(width for some in WIDTHS.values() for width in some)
    keys = {(kind, width): f"grid: {kind} of {width}" for kind in kinds for width in widths}
    table.measure({key: partial(_network, *what) for what, key in keys.items()}, RUNS)
    table.keep()
    return {kind: smallest_that_pays({w: table.seconds[keys[kind, w]] for w in widths}) for kind in kinds}


def smallest_that_pays(seconds: Mapping[int, float]) -> int:
    """Return the smallest step whose widths are not slower for their work than those of coarser steps.

    Args:
        seconds: Width -> seconds, for the widths in ``WIDTHS``.

    >>> work = {width: float(width**2) for widths in WIDTHS.values() for width in widths}
    >>> smallest_that_pays(work), smallest_that_pays({w: s * (1.5 if w % 4 else 1.0) for w, s in work.items()})
    (1, 4)
    """
    smooth = np.log(list(WIDTHS[32])), np.log([seconds[width] for width in WIDTHS[32]])
    slower = {
        step: float(np.mean([seconds[w] / np.exp(np.interp(np.log(w), *smooth)) for w in widths]))
        for step, widths in WIDTHS.items()
    }
    return next(step for step in STEPS if slower[step] <= min(slower[s] for s in STEPS if s >= step) + WORTH)


def steps_in(
    structure: Structure,
    backend: Backend,
    device: torch.device | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the step of each prunable group in a backend: the coarsest that pays for a layer of the group.

    It is at least that of "auto", which costs no accuracy and which no backend punishes. A layer of few channels gets
    a step of at most a third of them. Backends that take seconds to load a layer are not measured; they get "auto".

    Args:
        structure: The channel groups.
        backend: Where the model will run.
        device: Where to measure.
        sizes: Group name -> units before the first cut.
    """
    auto = steps(structure, AUTO, sizes)
    if not backend.quick_to_load:
        return auto
    kinds = {layer.weight: _kind(structure, layer.weight, layer.kind) for layer in structure.layers}
    wide = {slot.tensor for group in structure.prunable for slot in group.slots}
    grid = grid_of(backend, device, sorted({kind for weight, kind in kinds.items() if weight in wide}))
    found = {}
    for group in structure.prunable:
        wanted = max((grid[kinds[s.tensor]] for s in group.slots if s.tensor in kinds), default=1)
        widths, units = unit_widths(structure, group), (sizes or {}).get(group.name, group.size)
        while wanted > 1 and wanted * FEWEST > units * min(widths, default=1):
            wanted //= 2
        found[group.name] = max([auto[group.name], *(in_units(wanted, width) for width in widths)])
    return found


def _kind(structure: Structure, weight: str, kind: str) -> str:
    shape = structure.shapes[weight]
    return "depthwise" if kind == "conv" and len(shape) > 2 and shape[1] == 1 else kind


def _network(kind: str, width: int) -> tuple[nn.Module, Tensor]:
    """Build a few layers in a row, so that a backend converts the memory layout once, not for each layer."""
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, width)), torch.zeros(1, 196, width)
    if kind == "depthwise":
        part = [nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU()]
        return nn.Sequential(*part, nn.Conv2d(width, width, 1)), torch.zeros(1, width, 28, 28)
    layers = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1)), torch.zeros(1, width, 14, 14)
