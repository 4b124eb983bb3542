"""Mean, scatter and confidence intervals of samples that come batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and scatter of samples, player by player.

    Attributes:
        count: (players,) samples seen.
        total: (players,) their sum.
        squares: (players,) sum of their squares.
        low: Smallest that a sample can be: what payoffs in [0, 1] allow, or the smallest seen.
        high: Largest, likewise.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, players: int) -> RunningMoments:
        """Return the moments of no samples.

        Args:
            players: number of players.
        """
        count, total, squares = torch.zeros(3, players, dtype=torch.float64)
        return cls(count, total, squares)

    def add(self, samples: Tensor, bound: float = 1.0) -> None:
        """Add (n, players) samples, which are at most ``bound`` where payoffs lie in [0, 1]; NaN is no sample.

        Args:
            samples: (n, players) contributions.
            bound: their largest absolute value, if payoffs are in [0, 1].
        """
        self.count += samples.isfinite().sum(dim=0)
        self.total += samples.nansum(dim=0)
        self.squares += samples.square().nansum(dim=0)
        self.low = min(self.low, -bound, samples.nan_to_num().min().item())
        self.high = max(self.high, bound, samples.nan_to_num().max().item())

    @property
    def mean(self) -> Tensor:
        """(players,) means; NaN without a sample."""
        return self.total / self.count

    def half_width(self, confidence: float) -> Tensor:
        """Return empirical-Bernstein half-widths: with this probability every mean lies within its own.

        The bound of Maurer & Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT 2009, with a
        union bound over the players. The range is that of payoffs in [0, 1]; for others it is at least that of the
        samples seen, so that the intervals are approximate.

        Args:
            confidence: the probability, in (0, 1).

        Returns:
            (players,); infinite below two samples.
        """
        log = math.log(2 * len(self.count) / (1 - confidence))
        n = self.count
        variance = ((self.squares - self.total.square() / n) / (n - 1)).clamp(min=0)
        width = self.high - self.low
        result = (2 * variance * log / n).sqrt() + 7 * width * log / (3 * (n - 1))
        return torch.where(n > 1, result, torch.full_like(result, float("inf")))

    def undecided(self, remove: int, confidence: float) -> int:
        """Return how many players may still be on either side of the cut below which ``remove`` players fall.

        Args:
            remove: number of players to remove.
            confidence: probability of the intervals, in (0, 1).
        """
        order = self.mean.argsort()
        cut = self.mean[order[remove - 1 : remove + 1]].mean()
        return int(((self.mean - cut).abs() <= self.half_width(confidence)).sum())
