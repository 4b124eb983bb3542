"""Shapley values of a network: replays, scores against the definition, the price, payoffs, images."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.criteria import Shapley
from infoprune.criteria.shapley.channel_game import ChannelGame
from infoprune.criteria.shapley.coalitions import exact
from infoprune.criteria.shapley.scoring_run import suffix_shares
from infoprune.errors import ConfigurationError
from tests.games import TableGame
from tests.shapley_net import WHOLE, Net, Plain
from tests.tiers import slow

pytestmark = pytest.mark.usefixtures("one_thread")


def made() -> tuple[Plain, infoprune.Structure, list[tuple[Tensor, Tensor]]]:
    """Return a network, its structure and labelled images, the same each time."""
    torch.manual_seed(0)
    net = Plain()
    data = [(torch.randn(n, 3, 8, 8), torch.randint(4, (n,))) for n in (7, 5)]
    return net, infoprune.trace(net, torch.zeros(1, 3, 8, 8)), data


@functools.cache
def exact_scores(payoff: Any, absent: str = "mean") -> dict[str, Tensor]:
    """The exact values of every layer of the network, for all tests that ask for them."""
    return Shapley(estimator="exact", images=12, payoff=payoff, absent=absent)(*made())


@pytest.fixture
def everything() -> tuple[Plain, infoprune.Structure, list[tuple[Tensor, Tensor]]]:
    return made()


@pytest.fixture
def net(everything) -> Plain:
    return everything[0]


@pytest.fixture
def structure(everything) -> infoprune.Structure:
    return everything[1]


@pytest.fixture
def data(everything) -> list[tuple[Tensor, Tensor]]:
    return everything[2]


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


SLOWER = [
    *(("stem", absent, payoff) for absent in ("zero", "mean") for payoff in ("probability", "fidelity")),
    *(("conv1", absent, payoff) for absent, payoff in (("mean", "probability"), ("zero", "fidelity"))),
    *(
        ("hidden", absent, payoff)
        for absent, payoff in (("mean", "fidelity"), ("zero", "probability"), ("mean", "probability"))
    ),
]


def plain_fidelity(outputs: Tensor, whole: Tensor) -> Tensor:
    lost = [(one - other).norm() / other.norm() for one, other in zip(outputs, whole, strict=True)]
    return torch.stack([(1 - share**2).clamp(min=0) for share in lost])


@pytest.mark.parametrize(
    ("name", "absent", "payoff"),
    [
        ("conv1", "zero", "probability"),
        slow(("conv1", "mean", "fidelity")),
        slow(("hidden", "zero", "fidelity")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOWER),
    ],
)
def test_exact_scores_against_the_definition_on_the_gated_network(
    name: str, absent: str, payoff: str, net, structure, data
):
    scores = exact_scores(payoff, absent)[name]
    twin, n = gated(net), structure.group(name).size
    fill = means_of(twin, data) if absent == "mean" else None
    payoffs = torch.empty(1, 2**n, dtype=torch.float64)
    with torch.no_grad():
        whole = [twin(x) for x, _ in data]
    for code in range(2**n):
        gate = torch.tensor([float(code >> i & 1) for i in range(n)])
        gates = {layer: gate if layer == "hidden" else gate[:, None, None] for layer in LAYERS[name]}
        with torch.no_grad():
            paid = [
                plain_fidelity(twin(x, gates, fill), outputs)
                if payoff == "fidelity"
                else twin(x, gates, fill).softmax(dim=1)[torch.arange(len(y)), y]
                for (x, y), outputs in zip(data, whole, strict=True)
            ]
        payoffs[0, code] = torch.cat(paid).double().mean()
    assert torch.allclose(scores, exact(TableGame(payoffs))[0], atol=1e-6)
    assert scores.std() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["antithetic", "permutation", "complementary"])
def test_sampled_scores_come_close_to_the_exact_ones_and_lie_within_their_intervals(
    estimator: str, net, structure, data
):
    sampled = Shapley(estimator=estimator, rounds=60, **WHOLE)
    scores = sampled(net, structure, data)
    for name, expected in exact_scores("fidelity").items():
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


def test_size_restricted_scores_are_means_over_large_coalitions(net, data):
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8), frozen=["stem", "hidden"])
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


@pytest.mark.parametrize("payoff", [slow(own_payoff), f"{__name__}.own_payoff"])
def test_payoffs_by_name_path_or_function(payoff):
    scores, expected = exact_scores(payoff), exact_scores("log_probability")
    assert all(torch.allclose(scores[name], expected[name]) for name in scores)
    total = float(exact_scores("accuracy")["hidden"].sum())
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
