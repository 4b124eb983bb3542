"""Measured latency as a budget: how long the model takes on this device with given widths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.allocation.select import select
from infoprune.cost import latency
from infoprune.registry import check_count
from infoprune.snapshot import snapshot
from infoprune.structure import shrink

if TYPE_CHECKING:
    from infoprune.structure import Structure

PRECISION = 0.003
"""Relative standard error of a measured share that is good enough."""

MOST = 4
"""At most so many times the asked pairs of runs are spent on it; on what is confirmed, so many times again."""

FEWEST = 7
"""Pairs of runs that show how much the times scatter."""

CLEAR = 4
"""A share that is so many standard errors away from the target need not be known better."""


class LatencyShare:
    """A measure for latency budgets: the share of the original's time that a model of some widths takes.

    A copy of the model is shrunk to the widths (which units stay makes no difference to the time), and the two are
    timed in turn, so that whatever else the machine does meets both: the share is the median over pairs of runs. Where
    they scatter, more pairs are run, until the median's standard error is 0.3 % or there are four times as many; far
    from the target, fewer. Every set of widths is measured once and remembered.

    Args:
        model: The model that ``structure`` was traced from, on the device that counts. It is not changed.
        structure: Its structure.
        example_inputs: What to time: the batch size matters.
        repeats: Fewest pairs of runs near the target.
        now: The share that ``model`` itself takes, if it was pruned before.

    Attributes:
        target: The share that answers will be compared with. A measurement ends as soon as it is clearly on one side.

    Example:
        >>> import infoprune
        >>> from infoprune.allocation import Budget, Uniform
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> structure = infoprune.trace(net, images)
        >>> share = LatencyShare(net, structure, images, repeats=3)
        >>> sorted(Uniform().widths(structure, budget=Budget("latency", 1.0), measure=share))
        ['0', '2']
    """

    def __init__(
        self, model: nn.Module, structure: Structure, example_inputs: Any, repeats: int = 15, now: float = 1.0
    ) -> None:
        check_count("latency", "repeats", repeats, 1)
        self.model, self.structure, self.example_inputs = model, structure, example_inputs
        self.repeats, self.now = repeats, now
        self.target: float | None = None
        self._scores = {group.name: torch.zeros(group.size) for group in structure.prunable}
        self._ratios: dict[tuple[tuple[str, int], ...], list[float]] = {}
        self._confirmed: set[tuple[tuple[str, int], ...]] = set()

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The share that widths take."""
        key = _key(widths)
        if key not in self._ratios:
            self._ratios[key] = self._measured(widths)
        return self.now * statistics.median(self._ratios[key])

    def confirm(self, widths: Mapping[str, int]) -> float:
        """The same, measured anew and for longer, and together with that when confirmed once more."""
        key, ratios = _key(widths), self._measured(widths, MOST)
        self._ratios[key] = self._ratios[key] + ratios if key in self._confirmed else ratios
        self._confirmed.add(key)
        return self(widths)

    def _measured(self, widths: Mapping[str, int], longer: int = 1) -> list[float]:
        cut = select(self.structure, self._scores, widths)
        if cut.is_empty:
            return [1.0]
        copied = snapshot(self.model)
        shrink(copied, cut)
        target = None if self.target is None else self.target / self.now
        return paired_ratios(copied, self.model, self.example_inputs, longer * self.repeats, target)


def _key(widths: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(widths.items()))


def paired_ratios(
    model: nn.Module, reference: nn.Module, example_inputs: Any, repeats: int, target: float | None = None
) -> list[float]:
    """The time of ``model`` over that of ``reference``, in as many pairs of runs as it takes to know it.

    That is at least ``repeats``, unless the ratio is clearly below or above ``target``.
    """
    for one in (model, reference):
        latency(one, example_inputs, repeats=1, warmup=3)
    ratios: list[float] = []
    while not _known(ratios, repeats, target):
        order = (model, reference) if len(ratios) % 2 else (reference, model)
        seconds = {id(one): latency(one, example_inputs, repeats=1, warmup=0).median for one in order}
        ratios.append(seconds[id(model)] / seconds[id(reference)])
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
    """Of the median, relative to it; from the distance of the quartiles, which outliers leave alone."""
    if len(ratios) < 2:
        return 0.0
    low, median, high = statistics.quantiles(ratios, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)) / median
