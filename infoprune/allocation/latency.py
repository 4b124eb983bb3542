"""Latency budgets: the measured time of a model with given widths, as a share of the original's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.allocation.budget import cost_share
from infoprune.allocation.select import select
from infoprune.allocation.solve import Widths
from infoprune.backends import Run, get_backend
from infoprune.backends.backend import BackendSpec
from infoprune.backends.layers import timed_layers
from infoprune.backends.table import LatencyTable
from infoprune.backends.timing import PairedRuns
from infoprune.registry import check_count
from infoprune.snapshot import snapshot
from infoprune.structure import shrink

if TYPE_CHECKING:
    from infoprune.structure import Structure

ROUNDS = 8
"""At most so many choices of widths are measured as whole models."""

SLACK = 1e-9

CLOSE = 0.02
"""A budget of time counts as met when at most this share of it is left unspent."""

FEWEST = 7
"""Pairs of runs that show how much the times scatter."""

PRECISION = 0.01
"""Relative half of the 95 % interval at which a share is known well enough."""

LOOKS, SECONDS = 6, 8.0
"""A search ends after the pairs of runs of so many first looks, or after so many seconds of runs if that is later."""

UNSURE = 0.03
"""A share that is known no better than this is warned about."""

NEAR = 0.05
"""Measured shares that differ by so much, relatively, tell about equally much of a target."""

EXPONENTS = (0.05, 20.0)


@dataclass(frozen=True)
class _Known:
    """A measurement of one choice of widths: the estimate before it, the result, and the number of paired runs."""

    said: float
    share: float
    error: float
    pairs: int


class LatencyShare:
    """Cost function for latency budgets: widths -> share of the original's time.

    A call returns an estimate, the sum of the times of single layers: from a table of layers that were timed alone, or
    from multiply-accumulates in backends that need seconds to load a layer. `measured` shrinks a copy of the model to
    the widths (which units stay makes no difference to the time) and times it in turn with the original, so that other
    load on the machine affects both; the share is the median over pairs of runs. Estimates are raised to the power that
    agrees best with the measurements near the target.

    Args:
        model: The model that ``structure`` was traced from, on the target device. It is not changed.
        structure: Its structure.
        example_inputs: Inputs to time the model on; the batch size matters.
        repeats: Pairs of runs of whole models for a first measurement; by default as many as the backend needs.
        now: The share that ``model`` itself takes, if it was pruned before.
        backend: Where to time; see `infoprune.latency`.

    Raises:
        ConfigurationError: an unknown backend, or one that is not installed.
        ExportError: the backend cannot take the model.

    Example:
        >>> import infoprune
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> share = LatencyShare(net, infoprune.trace(net, images), images, repeats=3)
        >>> share({"0": 64, "2": 64}), share({"0": 8, "2": 8}) < 0.9
        (1.0, True)
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        example_inputs: Any,
        repeats: int | None = None,
        now: float = 1.0,
        backend: BackendSpec = "eager",
    ) -> None:
        self.backend = get_backend(backend)
        self.repeats = self.backend.repeats if repeats is None else repeats
        check_count("latency", "repeats", self.repeats, 1)
        self.model, self.structure, self.example_inputs, self.now = model, structure, example_inputs, now
        self._scores = {group.name: torch.zeros(group.size) for group in structure.prunable}
        self._whole: Run | None = None
        self._additive: Callable[[Mapping[str, int]], float] | None = None
        self._known: dict[tuple[tuple[str, int], ...], _Known] = {}
        self._exponent = 1.0
        self._pairs, self._seconds = 0, 0.0

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Return the share of the time that widths take, by the model of the time."""
        share: float = self.now * self._said(widths) ** self._exponent
        return share

    def measured(self, widths: Mapping[str, int]) -> float:
        """Return the share of the time that widths take, by the clock; the same widths are measured once.

        Args:
            widths: Group name -> units.
        """
        return self.now * self._measured(widths).share

    def error(self, widths: Mapping[str, int]) -> float:
        """Return the relative error of the measured share: half of its 95 % interval.

        Args:
            widths: Group name -> units that it keeps; they have to be measured already.
        """
        return self._measured(widths).error

    def within(self, target: float, solve: Callable[[float], Widths]) -> Widths:
        """Return the widths that take the most time within a target, by the clock.

        If none of the tried widths is within it, the narrowest are returned.

        Args:
            target: Share that may be spent.
            solve: Returns the widths that cost the most within a share, by calls of this object.
        """
        wanted, found = (1 - CLOSE / 2) * target, []
        aim = wanted
        for _ in range(ROUNDS):
            widths = solve(aim + SLACK)
            again = _key(widths) in self._known
            known = self._measured(widths, target)
            share = self.now * known.share
            if share <= target + SLACK:
                found.append((share, widths))
                if share >= (1 - CLOSE) * target:
                    break
            if not self._has_time():
                break
            if again:  # widths are coarse, or the model of the time is wrong about them
                aim *= wanted / share
        chosen = max(found, key=lambda entry: entry[0])[1] if found else solve(0.0)
        self._say_if_unsure(chosen)
        return chosen

    def _said(self, widths: Mapping[str, int]) -> float:
        if self._additive is None:
            self._additive = self._cost()
        return self._additive(widths)

    def _cost(self) -> Callable[[Mapping[str, int]], float]:
        """Return the share of the time that layers of these widths take together."""
        if not self.backend.quick_to_load:
            return cost_share(self.structure, "macs")
        first = next(self.model.parameters())
        table = LatencyTable(self.backend, first.device)
        layers = timed_layers(self.model, self.structure, self.example_inputs)
        if not layers:
            return cost_share(self.structure, "macs")
        curves = table.curves([(layer.kind, layer.inputs({}), layer.outputs({})) for layer in layers])
        table.keep()

        def seconds(widths: Mapping[str, int]) -> float:
            pairs = zip(layers, curves, strict=True)
            return sum(curve(layer.inputs(widths), layer.outputs(widths)) for layer, curve in pairs)

        whole = seconds({})
        return lambda widths: seconds(widths) / whole

    def _fitted(self, target: float | None) -> float:
        """Return the power of the estimates that agrees best with the measurements, above all with the nearest."""
        weights, exponents = [], []
        for known in self._known.values():
            if 0 < known.said < 1:
                exponents.append(math.log(min(known.share, 1 - SLACK)) / math.log(known.said))
                away = abs(math.log(self.now * known.share / target)) if target else 0.0
                weights.append(known.pairs / (away + NEAR) ** 2)
        if not exponents:
            return self._exponent
        mean = sum(w * e for w, e in zip(weights, exponents, strict=True)) / sum(weights)
        return min(max(mean, EXPONENTS[0]), EXPONENTS[1])

    def _measured(self, widths: Mapping[str, int], target: float | None = None) -> _Known:
        """Return the measurement of these widths, with more runs the closer they are to the target."""
        key = _key(widths)
        if key not in self._known:
            self._known[key] = self._clocked(widths, None if target is None else target / self.now)
            self._exponent = self._fitted(target)
        return self._known[key]

    def _clocked(self, widths: Mapping[str, int], target: float | None) -> _Known:
        cut = select(self.structure, self._scores, widths)
        if cut.is_empty:
            return _Known(1.0, 1.0, 0.0, 0)
        smaller = snapshot(self.model)
        shrink(smaller, cut)
        if self._whole is None:
            self._whole = self.backend.warmed_up(self.model, self.example_inputs)
        pairs = PairedRuns(self.backend.warmed_up(smaller, self.example_inputs), self._whole)
        pairs.more(min(FEWEST, self.repeats))
        if target is None or not _clearly_away(pairs, target):
            pairs.more(self.repeats - len(pairs.ratios))
            while pairs.error > _wanted(pairs, target) and self._has_time(pairs):
                pairs.more(self.repeats)
        self._pairs, self._seconds = self._pairs + len(pairs.ratios), self._seconds + pairs.seconds
        return _Known(self._said(widths), pairs.share, pairs.error, len(pairs.ratios))

    def _has_time(self, running: PairedRuns | None = None) -> bool:
        pairs, seconds = (len(running.ratios), running.seconds) if running else (0, 0.0)
        if self._pairs + pairs < LOOKS * self.repeats:
            return True
        return self.backend.quick_to_load and self._seconds + seconds < SECONDS

    def _say_if_unsure(self, widths: Mapping[str, int]) -> None:
        known = self._measured(widths)
        if known.error > UNSURE:
            warnings.warn(
                f"the share of the time is {self.now * known.share:.3g} give or take {known.error:.0%}: single runs "
                "scatter too much to know it better; measure on an idle machine",
                stacklevel=2,
            )


def _key(widths: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(widths.items()))


def _wanted(pairs: PairedRuns, target: float | None) -> float:
    """Return the required precision of a share: high if it may be the one that meets the target."""
    fits = target is None or (1 - CLOSE) * target <= pairs.share <= target + SLACK
    return PRECISION if fits else UNSURE


def _clearly_away(pairs: PairedRuns, target: float) -> bool:
    """Return whether a share certainly misses a target, so that it need not be measured more precisely."""
    low, high = pairs.share * (1 - pairs.error), pairs.share * (1 + pairs.error)
    return low > target * (1 + CLOSE) or high < target * (1 - 2 * CLOSE)
