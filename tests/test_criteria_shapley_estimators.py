"""Estimators of Shapley values on small games, where the values are known; their intervals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoprune.criteria.shapley.coalitions import antithetic, complementary, exact, permutation_marginals
from infoprune.criteria.shapley.running_moments import RunningMoments
from tests.games import TableGame, random_game

pytestmark = pytest.mark.usefixtures("one_thread")


def by_permutations(game: TableGame) -> Tensor:
    """The definition: mean marginal contribution over all permutations."""
    total = torch.zeros(game.images, game.players, dtype=torch.float64)
    for order in itertools.permutations(range(game.players)):
        code = 0
        for player in order:
            total[:, player] += game.payoffs[:, code | 1 << player] - game.payoffs[:, code]
            code |= 1 << player
    return total / math.factorial(game.players)


@given(players=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_exact_values_are_those_of_the_definition_and_add_up(players: int, seed: int):
    game = random_game(players, seed=seed)
    values = exact(game)
    assert torch.allclose(values, by_permutations(game))
    assert torch.allclose(values.sum(dim=1), game.payoffs[:, -1] - game.payoffs[:, 0])
    assert game.evaluations == 2**players


def test_walks_over_all_permutations_give_the_exact_values():
    game = random_game(4, images=24)
    game.payoffs[:] = game.payoffs[0]
    orders = torch.tensor(list(itertools.permutations(range(4))))
    expected = exact(game)[0]
    assert torch.allclose(permutation_marginals(game, orders).mean(dim=0), expected)
    assert torch.allclose(antithetic(game, orders).mean(dim=0), expected)
    sizes = [torch.tensor(c) for c in itertools.product([False, True], repeat=4)]
    contributions = [
        complementary(game, c.expand(24, 4))[0] / (5 * math.comb(4, int(c.sum()))) for c in sizes
    ]  # a coalition's probability when its size is uniform
    assert torch.allclose(torch.stack(contributions).sum(dim=0), expected)


def test_antithetic_pairs_are_exact_where_at_most_two_players_interact():
    pairs = torch.randn(6, 6, dtype=torch.float64)
    members = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).double()
    payoffs = (members @ pairs * members).sum(dim=1)
    game = TableGame(payoffs.expand(5, 64))
    order = torch.rand(5, 6).argsort(dim=1)
    assert torch.allclose(antithetic(game, order), exact(game))
    assert game.evaluations == 2 * 6 + 64


def test_restricted_walks_leave_small_coalitions_alone():
    game = random_game(5)
    order = torch.tensor([[0, 1, 2, 3, 4]] * 3)
    contributions = permutation_marginals(game, order, min_coalition=3)
    assert game.evaluations == 2
    assert contributions.isnan().tolist() == [[False, False, True, True, True]] * 3
    assert torch.equal(contributions[:, :2], permutation_marginals(game, order)[:, :2])
    both = antithetic(game, order, min_coalition=3)
    assert both.isnan().tolist() == [[False, False, True, False, False]] * 3


def test_intervals_hold_and_shrink():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.02, -0.1, 0.3], dtype=torch.float64)
    misses, widths = 0, []
    for _ in range(200):
        moments = RunningMoments.of(3)
        for _ in range(4):
            moments.add(truth + 0.2 * (torch.rand(100, 3, generator=generator, dtype=torch.float64) - 0.5))
        widths.append(moments.half_width(0.9))
        misses += bool(((moments.mean - truth).abs() > widths[-1]).any())
    assert misses <= 20
    few = RunningMoments.of(3)
    few.add(torch.rand(50, 3, dtype=torch.float64))
    assert (few.half_width(0.9) > widths[0]).all()
    assert RunningMoments.of(2).half_width(0.9).tolist() == [math.inf, math.inf]


def test_the_cut_is_settled_when_no_interval_crosses_it():
    moments = RunningMoments.of(4)
    moments.add(torch.tensor([0.0, 0.01, 0.5, 0.9], dtype=torch.float64).expand(2, 4))
    assert moments.undecided(2, 0.95) == 4
    for _ in range(100):
        moments.add(torch.tensor([0.0, 0.01, 0.5, 0.9], dtype=torch.float64).expand(10, 4))
    assert moments.undecided(2, 0.95) == 0
    assert moments.undecided(1, 0.95) == 2
