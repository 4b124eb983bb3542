"""Playing a game more often on the images where coalitions matter.

A trained network is sure of most images whichever channels are missing: of 256 CIFAR-10 images, taking away a whole
layer of a ResNet-56 moved the true class's probability by more than 0.05 on ten. Their contributions make nearly all of
the sampling error, so they are played more often and their contributions weighted down in return, which leaves the
expectation as it is (importance sampling with Neyman's allocation). In three layers of that network the variance fell
to a seventh and less (`benchmarks/results/scoring.md` has the errors). Where all images matter alike, as to an
untrained network, all are played alike: which images come would only add scatter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune.criteria.shapley.coalitions import Game

DEFENSIVE_FLOOR = 0.25
"""Every image is played as if it had at least this share of the mean spread, since a pilot can miss what matters.
Weights are thus at most (1 + DEFENSIVE_FLOOR) / DEFENSIVE_FLOOR = 5."""

WORTHWHILE = 2.0
"""By how much the variance has to fall, as the pilot sees it."""


def spread(game: Game, order: Tensor, runs: int, min_coalition: int = 0) -> Tensor:
    """Return how much the contributions of an image may scatter: a pilot walk that takes away many players at once.

    The square root of how far the payoff moves on that walk: a payoff in [0, 1] that moves by t in all has
    contributions with a standard deviation of at most the square root of t.

    Args:
        game: The game.
        order: (images, players): who leaves when.
        runs: Evaluations; the players leave in so many parts.
        min_coalition: Players that stay.

    Returns:
        (images,), not negative.
    """
    leaving, place = game.players - min_coalition, order.argsort(dim=1)
    moved, before = torch.zeros(game.images, dtype=torch.float64), game.full
    for part in range(1, runs + 1):
        after = game.value(place >= leaving * part // runs)
        moved += (after - before).abs()
        before = after
    return moved.sqrt()


def expected_copies(spreads: Tensor) -> Tensor:
    """Return how often each image should be played, once on average: (images,).

    Args:
        spreads: (images,) how much the payoffs of each image vary.

    Example:
        >>> expected_copies(torch.tensor([0.0, 0.0, 0.0, 8.0]))
        tensor([0.2000, 0.2000, 0.2000, 3.4000])
        >>> expected_copies(torch.tensor([1.0, 2.0, 1.0, 2.0]))
        tensor([1., 1., 1., 1.])
    """
    if spreads.square().mean() <= WORTHWHILE * spreads.mean().square():
        return torch.ones_like(spreads)
    weight = spreads + DEFENSIVE_FLOOR * spreads.mean()
    return weight / weight.mean()


def copies(expected: Tensor, offset: float) -> Tensor:
    """Draw whole numbers with these expectations over offsets in [0, 1), one on average: systematic sampling.

    Args:
        expected: (images,) expected copies.
        offset: a random number in [0, 1).

    Returns:
        (images,) copies.

    Example:
        >>> copies(torch.tensor([0.25, 1.5, 1.25]), 0.6)
        tensor([0, 2, 1])
    """
    ends = expected.cumsum(0)
    ends[-1] = len(expected)
    turns = (ends + offset).floor().clamp(max=len(expected))  # an offset next to 1 rounds up to it
    return turns.diff(prepend=torch.zeros(1, dtype=ends.dtype)).long()
