"""Images on which coalitions matter are played more often, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import infoprune
from infoprune.criteria import Shapley
from infoprune.criteria.shapley import importance_sampling
from infoprune.criteria.shapley.scoring_run import suffix_shares
from infoprune.errors import ConfigurationError
from tests.games import TableGame, random_game

pytestmark = pytest.mark.usefixtures("one_thread")

spreads = st.lists(st.floats(0, 1) | st.just(0.0), min_size=1, max_size=20).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(spreads=spreads, offset=st.floats(0, 1, exclude_max=True))
@example(spreads=torch.zeros(2, dtype=torch.float64), offset=1 - 2**-53)
@settings(deadline=None)
def test_as_many_images_are_played_as_there_are_and_no_weight_is_large(spreads: Tensor, offset: float):
    expected = importance_sampling.expected_copies(spreads)
    assert expected.sum().item() == pytest.approx(len(spreads))
    assert expected.min() >= importance_sampling.DEFENSIVE_FLOOR / (1 + importance_sampling.DEFENSIVE_FLOOR) - 1e-9
    copies = importance_sampling.copies(expected, offset)
    assert copies.sum() == len(spreads)
    assert ((copies - expected).abs() < 1 + 1e-9).all()


@given(spreads=spreads)
@settings(deadline=None, max_examples=25)
def test_over_all_offsets_every_image_is_played_as_often_as_expected(spreads: Tensor):
    expected = importance_sampling.expected_copies(spreads)
    drawn = torch.stack([importance_sampling.copies(expected, (step + 0.5) / 500) for step in range(500)])
    assert torch.allclose(drawn.double().mean(dim=0), expected, atol=0.01)


def test_the_spread_is_the_root_of_how_far_the_payoff_moves():
    game = random_game(4)
    game.payoffs[0] = 1.0  # nothing matters to this image
    order = torch.tensor([[2, 0, 3, 1]] * 3)
    found = importance_sampling.spread(game, order, runs=2)
    assert game.evaluations == 2
    without = game.payoffs[:, [0b1111, 0b1010, 0]]  # first 2 and 0 leave, then 3 and 1
    assert torch.allclose(found, without.diff(dim=1).abs().sum(dim=1).sqrt())
    assert found[0] == 0
    assert found[1:].min() > 0


def test_a_pilot_does_not_visit_smaller_coalitions_than_the_rounds_do():
    game = TableGame(torch.full((2, 32), 0.5, dtype=torch.float64))
    members = (torch.arange(32)[:, None] >> torch.arange(5)).bitwise_and(1).sum(dim=1)
    game.payoffs[:, members < 3] = float("nan")
    found = importance_sampling.spread(game, torch.arange(5).expand(2, 5), runs=2, min_coalition=3)
    assert found.tolist() == [0, 0]


CLASSICAL = {"payoff": "probability", "absent": "zero", "min_coalition": 0.0}
"""A payoff that moves on few images only."""


def sure_network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network that is sure of all images but four of 64 whatever is missing, as trained ones are."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    net[4].weight.data[0] = 0
    net[4].bias.data = torch.tensor([12.0, 0.0])
    images = 0.01 * torch.rand(64, 3, 4, 4, generator=generator)
    images[[5, 23, 41, 60]] *= torch.tensor([350.0, 500.0, 650.0, 900.0])[:, None, None, None]
    return net, [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(24)]


@pytest.mark.slow
def test_the_same_runs_give_smaller_errors_and_intervals_that_hold():
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    truth = Shapley(estimator="exact", **CLASSICAL)(net, structure, data)["0"]
    errors: dict[int, list[Tensor]] = {0: [], 4: []}
    for pilot, found in errors.items():
        for seed in range(8):
            shapley = Shapley(pilot=pilot, seed=seed, rounds=2, **CLASSICAL)
            found.append(shapley(net, structure, data)["0"] - truth)
            assert (found[-1].abs() <= shapley.intervals["0"]).all()
            behind = suffix_shares(structure)["0"]
            assert shapley.passes == pytest.approx(2 * (1 + 16 * behind) + (1 + 4 * behind if pilot else 0))
    equal, important = (torch.stack(found).square().mean() for found in errors.values())
    assert important < equal / 4
    bias = torch.stack(errors[4]).mean(dim=0).abs()
    assert (bias < 3 * torch.stack(errors[4]).std(dim=0)).all()


def test_scores_do_not_depend_on_batches():
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    in_three = Shapley(**CLASSICAL)(net, structure, data)["0"]
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    in_one = Shapley(**CLASSICAL)(net, structure, whole)["0"]
    assert torch.allclose(in_three, in_one, atol=1e-6)


def test_a_run_interrupted_in_its_pilot_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    expected = Shapley()(net, structure, data)["0"]
    spread, piloted = importance_sampling.spread, []

    def stops(*args: object) -> Tensor:
        if len(piloted) == 2:
            raise KeyboardInterrupt
        piloted.append(1)
        return spread(*args)

    monkeypatch.setattr(importance_sampling, "spread", stops)
    file = tmp_path / "partial.pt"
    with pytest.raises(KeyboardInterrupt):
        Shapley(partial_file=str(file))(net, structure, data)
    assert len(torch.load(file, weights_only=True)["spreads"]["0"]) == 2
    monkeypatch.setattr(importance_sampling, "spread", lambda *args: piloted.append(1) or spread(*args))
    again = Shapley(partial_file=str(file))(net, structure, data)["0"]
    assert len(piloted) == len(data)
    assert torch.equal(again, expected)
    assert not file.exists()


def test_a_pilot_is_a_number_of_runs():
    with pytest.raises(ConfigurationError, match="pilot"):
        Shapley(pilot=-1)
