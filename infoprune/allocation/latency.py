"""Measured latency as a budget: the share of the original's time that a model of some widths takes in a backend."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Callable, Mapping
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
from infoprune.backends.timing import paired_ratios
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

BACK = 0.01
"""After widths that took too long, the next choice aims so much lower, as a share of the target."""


class LatencyShare:
    """A cost function for latency budgets: widths -> the share of the original's time.

    A call answers from a model of the time, which adds up what the single layers take: by a table of layers that were
    timed one by one, or by multiply-accumulates in backends that need seconds to load a layer. `measured` shrinks a
    copy of the model to the widths (which units stay makes no difference to the time) and times it in turn with the
    original, so that whatever else the machine does meets both; the share is the median over pairs of runs. Every
    measured share corrects the answers of the model from then on.

    Args:
        model: The model that ``structure`` was traced from, on the device that counts. It is not changed.
        structure: Its structure.
        example_inputs: What to time: the batch size matters.
        repeats: Fewest pairs of runs of whole models; by default as many as the backend wants.
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
        self._points: list[tuple[float, float]] = [(1.0, 1.0)]  # what the model of the time said, and the truth
        self._shares: dict[tuple[tuple[str, int], ...], float] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Return the share of the time that widths take, by the model of the time."""
        if self._additive is None:
            self._additive = self._cost()
        return self.now * self._corrected(self._additive(widths))

    def measured(self, widths: Mapping[str, int], target: float | None = None) -> float:
        """Return the share of the time that widths take, by the clock; the same widths are measured once.

        Args:
            widths: Group name -> units.
            target: The share that the answer is compared with: far from it, fewer runs are enough.
        """
        key = tuple(sorted(widths.items()))
        if key not in self._shares:
            share = self._clocked(widths, None if target is None else target / self.now)
            self._shares[key] = self.now * share
            self._learn(widths, share)
        return self._shares[key]

    def within(self, target: float, solve: Callable[[float], Widths]) -> Widths:
        """Return the widths that take the most time within a target, by the clock.

        Args:
            target: Share that may be spent.
            solve: Returns the widths that cost the most within a share, by calls of this object.
        """
        aim, found = (1 - CLOSE / 2) * target, []
        for _ in range(ROUNDS):
            widths = solve(aim + SLACK)
            again = tuple(sorted(widths.items())) in self._shares
            share = self.measured(widths, target)
            if share > target + SLACK:
                aim -= BACK * target
                continue
            found.append((share, widths))
            if share >= (1 - CLOSE) * target or (again and aim >= target):
                break
            if again:
                aim = target  # widths are too coarse to stay a little below
        return max(found, key=lambda entry: entry[0])[1] if found else solve(0.0)

    def _cost(self) -> Callable[[Mapping[str, int]], float]:
        """Return the share of the time that layers of these widths take together."""
        if not self.backend.quick_to_load:
            return cost_share(self.structure, "macs")
        first = next(self.model.parameters())
        table = LatencyTable(self.backend, first.device)
        layers = [
            (layer.inputs, layer.outputs, table.curve(layer.kind, layer.inputs({}), layer.outputs({})))
            for layer in timed_layers(self.model, self.structure, self.example_inputs)
        ]
        table.keep()
        if not layers:
            return cost_share(self.structure, "macs")

        def seconds(widths: Mapping[str, int]) -> float:
            return sum(curve(inputs(widths), outputs(widths)) for inputs, outputs, curve in layers)

        whole = seconds({})
        return lambda widths: seconds(widths) / whole

    def _corrected(self, share: float) -> float:
        """Interpolate the measured share where the model of the time says ``share``."""
        said, truth = zip(*self._points, strict=True)
        if len(said) == 1 or share <= said[0]:
            return share * truth[0] / said[0]
        place = min(bisect.bisect_left(said, share), len(said) - 1)
        part = (share - said[place - 1]) / (said[place] - said[place - 1])
        return truth[place - 1] + part * (truth[place] - truth[place - 1])

    def _learn(self, widths: Mapping[str, int], share: float) -> None:
        """Add a measured point; those that it contradicts (more work in less time) are dropped."""
        if self._additive is None:
            self._additive = self._cost()
        said = self._additive(widths)
        if not 0 < said < 1:
            return
        kept = [(s, t) for s, t in self._points if (s < said and t < share) or (s > said and t > share) or s == 1.0]
        self._points = sorted([*kept, (said, min(share, 1.0))])

    def _clocked(self, widths: Mapping[str, int], target: float | None) -> float:
        cut = select(self.structure, self._scores, widths)
        if cut.is_empty:
            return 1.0
        smaller = snapshot(self.model)
        shrink(smaller, cut)
        if self._whole is None:
            self._whole = self.backend.warmed_up(self.model, self.example_inputs)
        run = self.backend.warmed_up(smaller, self.example_inputs)
        return statistics.median(paired_ratios(run, self._whole, self.repeats, target))
