"""Shapley values of players in a game that is played on many images at once.

Every image plays the game with a coalition of its own, so that a batch of B images evaluates B coalitions in one go.
What a player is worth is the mean over images of its Shapley value there, which by linearity is the Shapley value of
the mean payoff. Letting every image draw its own permutation instead of all images the same one is what makes few
evaluations go far: the permutations' scatter averages out over the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EXACT_LIMIT = 12
"""Most players for which all coalitions are evaluated."""


class Game(Protocol):
    """Players that can be present or absent, on a batch of images.

    Attributes:
        players: Number of players.
        images: Number of images.
        full: (images,) payoffs with all players present, float64.
    """

    players: int
    images: int
    full: Tensor

    def value(self, present: Tensor) -> Tensor:
        """Payoffs (images,) of coalitions (images, players), one for each image."""
        ...


def exact(game: Game) -> Tensor:
    """Shapley values from all coalitions: 2 ** players evaluations.

    Returns:
        (images, players).
    """
    n = game.players
    members = torch.arange(2**n)[:, None].bitwise_right_shift(torch.arange(n)).bitwise_and(1).bool()
    payoffs = torch.stack([game.value(row.expand(game.images, n)) for row in members])
    size = members.sum(dim=1)
    share = torch.tensor([1 / (n * math.comb(n - 1, s)) for s in range(n)], dtype=torch.float64)
    values = torch.empty(game.images, n, dtype=torch.float64)
    for player in range(n):
        without = (~members[:, player]).nonzero()[:, 0]
        gain = payoffs[without + 2**player] - payoffs[without]
        values[:, player] = share[size[without]] @ gain
    return values


def walk(game: Game, order: Tensor, least: int = 0) -> Tensor:
    """Marginal contributions along a permutation: players leave the full coalition one by one.

    Consecutive coalitions share all but one player, so ``players - least`` evaluations give as many contributions.

    Args:
        game: The game.
        order: (images, players): who leaves when.
        least: Players that stay; contributions to smaller coalitions are not looked at.

    Returns:
        (images, players) contributions; NaN for players that stay.
    """
    present = torch.ones(game.images, game.players, dtype=torch.bool)
    contributions = torch.full((game.images, game.players), float("nan"), dtype=torch.float64)
    before = game.full
    for leaving in order[:, : game.players - least].T:
        present.scatter_(1, leaving[:, None], False)
        after = game.value(present)
        contributions.scatter_(1, leaving[:, None], (before - after)[:, None])
        before = after
    return contributions


def antithetic(game: Game, order: Tensor, least: int = 0) -> Tensor:
    """Mean of the walks along a permutation and its reverse: exact for games with interactions of at most two players.

    Source: Mitchell et al., "Sampling Permutations for Shapley Value Estimation", JMLR 2022.

    Returns:
        (images, players); NaN for players that stay in both.
    """
    walks = torch.stack([walk(game, order, least), walk(game, order.flip(1), least)])
    return walks.nanmean(dim=0)


def complementary(game: Game, coalition: Tensor) -> Tensor:
    """Contributions of all players to one coalition and to its complement.

    Source: Kolpaczki et al., "Antithetic Sampling for Top-k Shapley Identification", arXiv 2504.02019 (CMCS), with
    the complement as the antithetic partner. The size of the coalition must be uniform over 0..players. Costs 2
    (players + 1) evaluations.

    Args:
        game: The game.
        coalition: (images, players).

    Returns:
        (images, players).
    """
    contributions = torch.zeros(game.images, game.players, dtype=torch.float64)
    for present in (coalition, ~coalition):
        here = game.value(present)
        for player in range(game.players):
            toggled = present.clone()
            toggled[:, player] = ~present[:, player]
            gain = here - game.value(toggled)
            contributions[:, player] += torch.where(present[:, player], gain, -gain) / 2
    return contributions


@dataclass
class Tally:
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
    def of(cls, players: int) -> Tally:
        """Return an empty tally."""
        count, total, squares = torch.zeros(3, players, dtype=torch.float64)
        return cls(count, total, squares)

    def add(self, samples: Tensor, bound: float = 1.0) -> None:
        """Add (n, players) samples, which are at most ``bound`` where payoffs lie in [0, 1]; NaN is no sample."""
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
        """Empirical-Bernstein half-widths: all means are within theirs with this probability.

        The bound of Maurer & Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT 2009, with a
        union bound over the players. The range is that of payoffs in [0, 1]; for others it is at least that of the
        samples seen, so that the intervals are approximate.

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
        """Return how many players may still be on either side of the cut below which ``remove`` players fall."""
        order = self.mean.argsort()
        cut = self.mean[order[remove - 1 : remove + 1]].mean()
        return int(((self.mean - cut).abs() <= self.half_width(confidence)).sum())
