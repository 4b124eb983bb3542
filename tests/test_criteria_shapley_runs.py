"""Runs of the criterion Shapley: limits, interruptions, models that change their way, and what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.criteria import Shapley, get_criterion
from infoprune.criteria.payoffs import fidelity
from infoprune.criteria.shapley.channel_game import ChannelGame
from infoprune.criteria.shapley.scoring_run import suffix_shares
from infoprune.errors import CheckpointError, ConfigurationError, DataError
from tests.shapley_net import Plain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Plain:
    return Plain()


@pytest.fixture
def structure(net: Plain) -> infoprune.Structure:
    return infoprune.trace(net, torch.zeros(1, 3, 8, 8))


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, 8, 8), torch.randint(4, (n,))) for n in (7, 5)]


def test_outputs_without_any_length_are_no_obstacle():
    zeros = torch.zeros(2, 3)
    assert fidelity(zeros, zeros).tolist() == [1, 1]
    assert fidelity(zeros + 1, zeros).tolist() == [0, 0]
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert fidelity(half / 2, half).tolist() == [0.75, 0.75]


def test_a_limit_ends_the_run_after_every_group_was_played(net, structure, data):
    limited = Shapley(rounds=50, max_passes=1.0, pilot=0, absent="zero")
    scores = limited(net, structure, data)
    one = Shapley(rounds=1, images=7, pilot=0, absent="zero")(net, structure, data)
    assert all(torch.equal(scores[name], one[name]) for name in scores)
    timed = Shapley(rounds=10_000, max_seconds=0.5)
    timed(net, structure, data)
    assert timed.seconds < 30


def test_a_settled_group_is_played_no_more():
    """Half of the units do nothing, which is plain at once."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    net[0].weight.data.fill_(0.3)
    net[0].bias.data.fill_(0)
    net[4].weight.data.fill_(0)
    net[4].weight.data[0, 1::2] = 3
    net[4].bias.data = torch.tensor([-2.0, 0.0, -9.0])
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    images = torch.rand(64, 3, 4, 4)
    data = [(part, torch.zeros(16, dtype=torch.long)) for part in images.split(16)]
    eager = Shapley(
        payoff="probability", absent="zero", min_coalition=0.0, rounds=200, remove=0.5, required_certainty=0.5
    )
    scores = eager(net, structure, data)["0"]
    assert set(scores.argsort()[:4].tolist()) == {0, 2, 4, 6}
    assert eager.passes < 0.9 * 200 * (1 + 16 * suffix_shares(structure)["0"])


@pytest.mark.parametrize("breaks_after", [1, 3])
def test_an_interrupted_run_goes_on_where_it_was(breaks_after: int, net, structure, data, tmp_path: Path, monkeypatch):
    expected = Shapley(rounds=2)(net, structure, data)
    file = tmp_path / "partial.pt"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sample, played = Shapley.sample, []

    def stops(self: Shapley, *args: object) -> Tensor:
        if len(played) == 3 * breaks_after:
            raise KeyboardInterrupt
        played.append(1)
        return sample(self, *args)

    monkeypatch.setattr(Shapley, "sample", stops)
    with pytest.raises(KeyboardInterrupt):
        Shapley(rounds=2, partial_file=str(file))(net, structure, data)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert file.exists()
    kept = torch.load(file, weights_only=True)
    assert kept["batches"] == breaks_after
    played.clear()
    monkeypatch.setattr(Shapley, "sample", lambda self, *args: played.append(1) or sample(self, *args))
    again = Shapley(rounds=2, partial_file=str(file))(net, structure, data)
    assert len(played) == 3 * (4 - breaks_after)
    assert all(torch.allclose(again[name], expected[name]) for name in expected)
    assert not file.exists()


def test_partial_scores_of_another_run_are_refused(net, structure, data, tmp_path: Path, monkeypatch):
    file = tmp_path / "partial.pt"
    monkeypatch.setattr("infoprune.criteria.shapley.score_checkpoint.ScoreCheckpoint.remove", lambda self: None)
    Shapley(rounds=1, partial_file=str(file))(net, structure, data)
    with pytest.raises(CheckpointError, match="belongs to another scoring run: its options are"):
        Shapley(rounds=2, partial_file=str(file))(net, structure, data)
    net.head.weight.data += 1
    with pytest.raises(CheckpointError, match="belongs to another scoring run: its weights are"):
        Shapley(rounds=1, partial_file=str(file))(net, structure, data)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="does not hold partial scores"):
        Shapley(rounds=1, partial_file=str(file))(net, structure, data)
    with pytest.raises(CheckpointError, match="its folder does not exist"):
        Shapley(partial_file=str(tmp_path / "none" / "partial.pt"))(net, structure, data)


class Late(Plain):
    """Computes a factor before the layer that is used at the end, and hides that from torch functions on demand."""

    hide = False

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        factor = self._factor(torch.relu(x))
        return super().forward(x) * factor

    def _factor(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction() if self.hide else nullcontext():  # hidden, as scripted functions are
            return x.mean(dim=(1, 2, 3))[:, None]


def test_where_torch_does_not_see_what_is_computed_the_whole_network_is_run(net, structure, data):
    late = Late()
    late.load_state_dict(net.state_dict())
    present = torch.rand(7, 5) < 0.5
    values = {}
    with torch.no_grad():
        for hide in (False, True):
            late.hide = hide
            game = ChannelGame(late.eval(), structure, structure.group("conv1"), "probability", "test")
            values[hide] = game.on(*data[0], 7).value(present)
            assert game.can_replay is not hide
    assert torch.allclose(values[True], values[False])


def test_models_that_change_their_way_are_run_whole(net, structure, data):
    class Wandering(Plain):
        turn = 0

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.turn += 1
            if self.turn % 2:
                x = x + 0.0
            return super().forward(x)

    wandering = Wandering()
    wandering.load_state_dict(net.state_dict())
    game = ChannelGame(wandering.eval(), structure, structure.group("conv1"), "probability", "test")
    with torch.no_grad():
        batch = game.on(*data[0], 7)
        assert game.can_replay is False
        present = torch.rand(7, 5) < 0.5
        expected = ChannelGame(net.eval(), structure, structure.group("conv1"), "probability", "test").on(*data[0], 7)
        assert torch.allclose(batch.value(present), expected.value(present))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "antithetc"}, "estimator cannot be 'antithetc', did you mean 'antithetic'"),
        ({"min_coalition": 1.0}, "min_coalition must be a number of at least 0"),
        ({"absent": "means"}, "absent cannot be 'means', did you mean 'mean'"),
        (
            {"min_coalition": 0.5, "estimator": "complementary"},
            "min_coalition=0.5 restricts permutations; estimator 'complementary' has none",
        ),
        ({"remove": 1.5}, "remove must be a number of at least 0 and at most 1, got 1.5"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"payoff": "probabilty"}, "payoff 'probabilty' is neither .* did you mean 'probability'"),
        ({"max_seconds": -1}, "max_seconds must be a number of at least 0"),
    ],
)
def test_impossible_options(options: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        get_criterion({"name": "shapley", **options})


@pytest.mark.parametrize(
    ("options", "batches", "error", "message"),
    [
        ({}, [], DataError, "holds no image"),
        ({"payoff": "probability"}, [torch.zeros(2, 3, 8, 8)], DataError, "have no targets"),
        ({"payoff": F.cross_entropy}, None, ConfigurationError, r"must return one value an image, \(7,\), not \(\)"),
        (
            {"payoff": lambda o, t: o.sum(dim=1) / 0},
            None,
            ConfigurationError,
            "the payoff of 7 of 7 images is not finite",
        ),
        (
            {"min_coalition": 0.9, "images": 1, "estimator": "permutation"},
            None,
            DataError,
            "were never played with min_coalition=0.9",
        ),
    ],
)
def test_what_cannot_be_scored_is_said(options, batches, error, message: str, net, structure, data):
    with pytest.raises(error, match=message):
        Shapley(**options)(net, structure, data if batches is None else batches)
    assert net.training


def test_exact_refuses_large_layers():
    net = nn.Sequential(nn.Conv2d(3, 13, 1), nn.ReLU(), nn.Conv2d(13, 2, 1))
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigurationError, match="'exact' plays all coalitions of at most 12 units, and 0 has 13"):
        Shapley(estimator="exact")(net, structure, [(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))])


def test_options_under_their_old_names():
    with pytest.warns(DeprecationWarning, match="least is now called min_coalition"):
        assert Shapley(least=0.25).min_coalition == 0.25
    with pytest.warns(DeprecationWarning, match="settled is now called required_certainty"):
        assert infoprune.criteria.get_criterion({"name": "shapley", "settled": 0.5}) == Shapley(required_certainty=0.5)


def test_modules_under_their_old_names():
    with pytest.warns(DeprecationWarning, match="infoprune.criteria.feature_guided is now"):
        from infoprune.criteria.feature_guided import guide_capacity
    assert guide_capacity.__module__ == "infoprune.criteria.measures.feature_guided"
