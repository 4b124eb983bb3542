"""Measured latency as a budget: how long the model takes on this device with given widths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.allocation.select import select
from infoprune.allocation.solve import Measure
from infoprune.cost import latency
from infoprune.registry import check_count
from infoprune.snapshot import snapshot
from infoprune.structure import shrink

if TYPE_CHECKING:
    from infoprune.structure import Structure

PRECISION = 0.0025
"""Relative standard error of a measured share that is good enough."""

MOST = 8
"""At most so many times the asked pairs of runs are spent on it."""


def latency_share(
    model: nn.Module,
    structure: Structure,
    example_inputs: Any,
    repeats: int = 15,
    original: nn.Module | None = None,
) -> Measure:
    """A measure for latency budgets: the share of the original's time that a model of some widths takes.

    A copy of the model is shrunk to the widths (which units stay makes no difference to the time), and the two are
    timed in turn, so that whatever else the machine does meets both: the share is the median over pairs of runs. Where
    they scatter, more pairs are run, until the median's standard error is a quarter of a percent or there are eight
    times as many. Every set of widths is measured once and remembered.

    Args:
        model: The model that ``structure`` was traced from, on the device that counts. It is not changed.
        structure: Its structure.
        example_inputs: What to time: the batch size matters.
        repeats: Fewest pairs of runs.
        original: The model whose time counts as 1; ``model`` by default. Gradual pruning passes the unpruned one.

    Returns:
        A function for ``measure=`` of :meth:`~infoprune.allocation.Allocation.widths`.

    Example:
        >>> import infoprune
        >>> from infoprune.allocation import Budget, Uniform
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> structure = infoprune.trace(net, images)
        >>> share = latency_share(net, structure, images, repeats=3)
        >>> sorted(Uniform().widths(structure, budget=Budget("latency", 1.0), measure=share))
        ['0', '2']
    """
    check_count("latency", "repeats", repeats, 1)
    unpruned = original or model
    scores = {group.name: torch.zeros(group.size) for group in structure.prunable}
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def measure(widths: Mapping[str, int]) -> float:
        key = tuple(sorted(widths.items()))
        if key not in known:
            cut = select(structure, scores, widths)
            if cut.is_empty and unpruned is model:
                known[key] = 1.0
            else:
                copied = snapshot(model)
                shrink(copied, cut)
                known[key] = paired_ratio(copied, unpruned, example_inputs, repeats)
        return known[key]

    return measure


def paired_ratio(model: nn.Module, reference: nn.Module, example_inputs: Any, repeats: int) -> float:
    """Median over pairs of runs of the time of ``model`` over that of ``reference``; ``repeats`` pairs or more."""
    for one in (model, reference):
        latency(one, example_inputs, repeats=1, warmup=3)
    ratios: list[float] = []
    while len(ratios) < repeats or (len(ratios) < MOST * repeats and _standard_error(ratios) > PRECISION):
        order = (model, reference) if len(ratios) % 2 else (reference, model)
        seconds = {id(one): latency(one, example_inputs, repeats=1, warmup=0).median for one in order}
        ratios.append(seconds[id(model)] / seconds[id(reference)])
    return statistics.median(ratios)


def _standard_error(ratios: Sequence[float]) -> float:
    """Of the median, relative to it; from the distance of the quartiles, which outliers leave alone."""
    if len(ratios) < 2:
        return 0.0
    low, median, high = statistics.quantiles(ratios, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)) / median
