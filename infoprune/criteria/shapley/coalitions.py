"""Shapley values of players in a game that is played on many images at once.

Every image plays the game with its own coalition, so that a batch of B images evaluates B coalitions in one pass.
A player's value is the mean over images of its Shapley value, which by linearity is the Shapley value of
the mean payoff. Few evaluations are enough because every image draws its own permutation: the permutations' variance
averages out over the images.
"""

from __future__ import annotations

import math
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
        """Return payoffs (images,) of coalitions (images, players), one for each image."""
        ...


def exact(game: Game) -> Tensor:
    """Return Shapley values from all coalitions: 2 ** players evaluations.

    Args:
        game: the players and their payoffs.

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


def permutation_marginals(game: Game, order: Tensor, min_coalition: int = 0) -> Tensor:
    """Return marginal contributions along a permutation: players leave the full coalition one by one.

    Consecutive coalitions share all but one player, so ``players - min_coalition`` evaluations give as many
    contributions.

    Args:
        game: The game.
        order: (images, players): who leaves when.
        min_coalition: Players that stay; contributions to smaller coalitions are not looked at.

    Returns:
        (images, players) contributions; NaN for players that stay.
    """
    present = torch.ones(game.images, game.players, dtype=torch.bool)
    contributions = torch.full((game.images, game.players), float("nan"), dtype=torch.float64)
    before = game.full
    for leaving in order[:, : game.players - min_coalition].T:
        present.scatter_(1, leaving[:, None], False)
        after = game.value(present)
        contributions.scatter_(1, leaving[:, None], (before - after)[:, None])
        before = after
    return contributions


def antithetic(game: Game, order: Tensor, min_coalition: int = 0) -> Tensor:
    """Return the mean of the walks along a permutation and its reverse.

    Exact for games with interactions of at most two players.

    Source: Mitchell et al., "Sampling Permutations for Shapley Value Estimation", JMLR 2022.

    Args:
        game: The payoffs of coalitions.
        order: (images, players) permutations.
        min_coalition: Players that stay; contributions to smaller coalitions are not looked at.

    Returns:
        (images, players); NaN for players that stay in both.
    """
    walks = torch.stack(
        [permutation_marginals(game, order, min_coalition), permutation_marginals(game, order.flip(1), min_coalition)]
    )
    return walks.nanmean(dim=0)


def complementary(game: Game, coalition: Tensor) -> Tensor:
    """Return contributions of all players to one coalition and to its complement.

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
