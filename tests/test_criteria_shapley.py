"""Shapley values: exact on small games, replays of real networks, intervals, limits, and interruptions."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import infoprune
from infoprune.criteria import Shapley, get_criterion
from infoprune.criteria.payoffs import fidelity
from infoprune.criteria.shapley.channel_game import ChannelGame
from infoprune.criteria.shapley.coalitions import antithetic, complementary, exact, permutation_marginals
from infoprune.criteria.shapley.running_moments import RunningMoments
from infoprune.criteria.shapley.scoring_run import suffix_shares
from infoprune.errors import CheckpointError, ConfigurationError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = {"min_coalition": 0.0}
"""Coalitions of all sizes, as in Shapley's definition."""


@dataclass
class TableGame:
    """A game whose payoffs are a table: (images, 2 ** players)."""

    payoffs: Tensor

    def __post_init__(self) -> None:
        self.images, size = self.payoffs.shape
        self.players = size.bit_length() - 1
        self.full = self.payoffs[:, -1]
        self.evaluations = 0

    def value(self, present: Tensor) -> Tensor:
        self.evaluations += 1
        code = (present.long() * 2 ** torch.arange(self.players)).sum(dim=1)
        return self.payoffs[torch.arange(self.images), code]


def random_game(players: int, images: int = 3, seed: int = 0) -> TableGame:
    return TableGame(
        torch.randn(images, 2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


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


class Net(nn.Module):
    """Shortcut, in-place activation, a tensor from before the layer used behind it, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 4)
        for parameter in self.parameters():
            parameter.data.mul_(3)

    def forward(
        self, x: Tensor, gates: dict[str, Tensor] | None = None, fill: dict[str, Tensor] | None = None
    ) -> Tensor:
        self.activations: dict[str, Tensor] = {}

        def gate(name: str, x: Tensor) -> Tensor:
            self.activations[name] = x.clone()
            present = (gates or {}).get(name, torch.ones(()))
            return x * present + (fill or {}).get(name, torch.zeros(())) * (1 - present)

        scale = 1 + x.mean(dim=(1, 2, 3))[:, None]
        x = gate("stem", torch.relu(self.stem(x)))
        out = gate("conv1", self.act(self.bn1(self.conv1(x))))
        out = gate("conv2", self.bn2(self.conv2(out)))
        out = out + x
        x = gate("hidden", self.hidden(torch.relu_(out).mean(dim=(2, 3))).relu())
        return self.head(x) * scale


class Plain(Net):
    """The same without gates, as a user would write it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        scale = 1 + x.mean(dim=(1, 2, 3))[:, None]
        x = torch.relu(self.stem(x))
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        x = self.hidden(torch.relu_(out).mean(dim=(2, 3))).relu()
        return self.head(x) * scale


@pytest.fixture
def net() -> Plain:
    return Plain()


@pytest.fixture
def structure(net: Plain) -> infoprune.Structure:
    return infoprune.trace(net, torch.zeros(1, 3, 8, 8))


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, 8, 8), torch.randint(4, (n,))) for n in (7, 5)]


def gated(net: Plain) -> Net:
    twin = Net().eval()
    twin.load_state_dict(net.state_dict())
    return twin


LAYERS = {"stem": ("stem", "conv2"), "conv1": ("conv1",), "hidden": ("hidden",)}


@pytest.mark.parametrize("name", ["stem", "conv1", "hidden"])
def test_replays_give_what_the_gated_network_gives(name: str, net, structure, data):
    group = structure.group(name)
    inputs, targets = data[0]
    net.eval()
    with torch.no_grad():
        game = ChannelGame(net, structure, group, "probability", "test")
        batch = game.on(inputs, targets, 7)
        assert game.can_replay
        for seed in range(4):
            present = torch.rand(7, group.size, generator=torch.Generator().manual_seed(seed)) < 0.6
            gates = {
                layer: present.float() if layer == "hidden" else present.float()[:, :, None, None]
                for layer in LAYERS[name]
            }
            outputs = gated(net)(inputs, gates)
            expected = outputs.softmax(dim=1)[torch.arange(7), targets]
            assert torch.allclose(batch.value(present), expected.double(), atol=1e-6)


def test_only_the_part_behind_the_layer_is_computed(net, structure, data, monkeypatch):
    net.eval()
    with torch.no_grad():
        batch = ChannelGame(net, structure, structure.group("hidden"), "probability", "test").on(*data[0], 7)
        calls = []
        convolution = torch.conv2d
        monkeypatch.setattr(F, "conv2d", lambda *a, **k: calls.append(1) or convolution(*a, **k))
        for module in (net.conv1, net.conv2, net.stem):
            monkeypatch.setattr(module, "weight", nn.Parameter(torch.full_like(module.weight, float("nan"))))
        assert torch.allclose(batch.value(torch.ones(7, 7, dtype=torch.bool)), batch.full)


def means_of(twin: Net, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What each layer of the gated network puts out on average, shaped as its activations are."""
    with torch.no_grad():
        seen = []
        for x, _ in data:
            twin(x)
            seen.append(twin.activations)
    whole = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    return {name: x.mean(dim=[0, *range(2, x.dim())]).view(-1, *(1,) * (x.dim() - 2)) for name, x in whole.items()}


def plain_fidelity(outputs: Tensor, whole: Tensor) -> Tensor:
    lost = [(one - other).norm() / other.norm() for one, other in zip(outputs, whole, strict=True)]
    return torch.stack([(1 - share**2).clamp(min=0) for share in lost])


@pytest.mark.parametrize("payoff", ["probability", "fidelity"])
@pytest.mark.parametrize("absent", ["zero", "mean"])
@pytest.mark.parametrize("name", [pytest.param("stem", marks=pytest.mark.slow), "conv1", "hidden"])
def test_exact_scores_against_the_definition_on_the_gated_network(
    name: str, absent: str, payoff: str, net, structure, data
):
    scores = Shapley(estimator="exact", images=12, payoff=payoff, absent=absent)(net, structure, data)[name]
    twin, n = gated(net), structure.group(name).size
    fill = means_of(twin, data) if absent == "mean" else None
    payoffs = torch.empty(1, 2**n, dtype=torch.float64)
    for code in range(2**n):
        gate = torch.tensor([float(code >> i & 1) for i in range(n)])
        gates = {layer: gate if layer == "hidden" else gate[:, None, None] for layer in LAYERS[name]}
        with torch.no_grad():
            paid = [
                plain_fidelity(twin(x, gates, fill), twin(x))
                if payoff == "fidelity"
                else twin(x, gates, fill).softmax(dim=1)[torch.arange(len(y)), y]
                for x, y in data
            ]
        payoffs[0, code] = torch.cat(paid).double().mean()
    assert torch.allclose(scores, exact(TableGame(payoffs))[0], atol=1e-6)
    assert scores.std() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["antithetic", "permutation", "complementary"])
def test_sampled_scores_come_close_to_the_exact_ones_and_lie_within_their_intervals(
    estimator: str, net, structure, data
):
    exact_scores = Shapley(estimator="exact")(net, structure, data)
    sampled = Shapley(estimator=estimator, rounds=60, **WHOLE)
    scores = sampled(net, structure, data)
    for name, expected in exact_scores.items():
        assert torch.allclose(scores[name], expected, atol=0.5 * float(expected.std()))
        assert ((scores[name] - expected).abs() <= sampled.intervals[name]).all()


def test_the_price_is_what_the_docstring_says(net, structure, data):
    shares = suffix_shares(structure)
    assert shares["stem"] > shares["conv1"] > shares["hidden"] > shares["head"] == 0
    plain = Shapley(rounds=2, absent="zero", **WHOLE)
    plain(net, structure, data)
    sizes = {group.name: group.size for group in structure.prunable}
    rounds = 2 * sum(1 + 2 * n * shares[name] for name, n in sizes.items())
    assert plain.passes == pytest.approx(rounds + sum(1 + 4 * shares[name] for name in sizes))
    assert plain.seconds > 0
    filled = Shapley(rounds=2, **WHOLE)
    filled(net, structure, data)
    assert filled.passes == pytest.approx(plain.passes + 1)
    assert [Shapley().evaluations(n) for n in (4, 5, 6, 7)] == [4, 6, 6, 6]
    halves = Shapley(estimator="permutation", min_coalition=0.5)
    assert [halves.evaluations(n) for n in (4, 5, 6, 7)] == [2, 3, 3, 3]
    assert [Shapley(estimator=e).evaluations(5) for e in ("exact", "complementary")] == [32, 12]


def test_scores_do_not_depend_on_batches_or_on_the_global_generator(net, structure, data):
    first = Shapley(rounds=2)(net, structure, data)
    images, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    torch.rand(5)
    second = Shapley(rounds=2)(net, structure, [(images, labels)])
    other = Shapley(rounds=2, seed=1)(net, structure, data)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert any(not torch.allclose(first[name], other[name], atol=1e-6) for name in first)


def test_size_restricted_scores_are_means_over_large_coalitions(net, structure, data):
    scores = Shapley(payoff="probability", estimator="permutation", absent="zero", min_coalition=0.75, rounds=60)(
        net, structure, data
    )
    net.eval()
    with torch.no_grad():
        game = ChannelGame(net, structure, structure.group("conv1"), "probability", "test")
        drops = []
        for x, y in data:
            batch = game.on(x, y, len(y))
            keep = torch.ones(5, len(y), 5, dtype=torch.bool)
            keep[torch.arange(5), :, torch.arange(5)] = False
            drops.append(torch.stack([batch.full - batch.value(k) for k in keep], dim=1))
    leave_one_out = torch.cat(drops)  # of five units at least four stay: one step from the full coalition
    assert torch.allclose(scores["conv1"], leave_one_out.mean(dim=0), atol=0.6 * float(leave_one_out.mean(dim=0).std()))


def own_payoff(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("payoff", ["log_probability", own_payoff, f"{__name__}.own_payoff"])
def test_payoffs_by_name_path_or_function(payoff, net, structure, data):
    scores = Shapley(payoff=payoff, estimator="exact")(net, structure, data)
    expected = Shapley(payoff="log_probability", estimator="exact")(net, structure, data)
    assert all(torch.allclose(scores[name], expected[name]) for name in scores)
    accuracy = Shapley(payoff="accuracy", estimator="exact")(net, structure, data)
    total = float(accuracy["hidden"].sum())
    assert -1 <= total <= 1
    assert total * 12 == pytest.approx(round(total * 12), abs=1e-9)


def test_fidelity_needs_no_targets_and_any_outputs_of_floating_point(net, structure, data):
    expected = Shapley()(net, structure, data)
    unlabelled = Shapley()(net, structure, [x for x, _ in data])
    assert all(torch.equal(unlabelled[name], expected[name]) for name in expected)

    class InParts(Plain):
        def forward(self, x: Tensor) -> dict:  # type: ignore[override]
            out = super().forward(x)
            return {"first": out[:, 0], "others": [out[:, 1:, None]], "class": out.argmax(dim=1)}

    parts = InParts()
    parts.load_state_dict(net.state_dict())
    in_parts = Shapley()(parts, infoprune.trace(parts, torch.zeros(1, 3, 8, 8)), data)
    assert all(torch.allclose(in_parts[name], expected[name], atol=1e-6) for name in expected)

    class Chosen(Plain):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x).argmax(dim=1)

    class Varying(Plain):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.calls += 1
            return super().forward(x)[:, : 3 + self.calls % 2]

    with pytest.raises(ConfigurationError, match=r"the model returns none with all channels .* choose another payoff"):
        Shapley()(Chosen(), structure, data)
    with pytest.raises(
        ConfigurationError, match=r"returns \[\(7, 4\)\] with all channels and \[\(7, 3\)\] without some"
    ):
        Shapley()(Varying(), structure, data)


def test_images_are_shown_as_in_training_where_the_data_can_do_that(net, structure, data):
    class Both(list):
        as_trained: list

    shown = Both(data)
    shown.as_trained = [(x.flip(3), y) for x, y in data]
    scores = Shapley()(net, structure, shown)
    expected = Shapley()(net, structure, shown.as_trained)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert not torch.allclose(scores["conv1"], Shapley()(net, structure, data)["conv1"])


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
