"""Criteria that look at activations: what they observe, and their scores against the plain procedures."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.criteria import CHIP, CRITERIA, HRank, Taylor, get_criterion
from infoprune.criteria.activations.tap import as_maps, stream_activations
from infoprune.criteria.chip import channel_independence
from infoprune.criteria.filters import scored_layers
from infoprune.criteria.measures.feature_rank import feature_ranks
from infoprune.errors import ConfigurationError, DataError


class Net(nn.Module):
    """Every way to put an activation behind a layer: modules, functions, in place, and none before an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 7)
        self.head = nn.Linear(7, 5)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        x = torch.relu_(out).mean(dim=(2, 3))
        return self.head(self.hidden(x).tanh())

    def expected(self, x: Tensor) -> dict[str, Tensor]:
        stem = F.relu(self.stem(x))
        conv1 = F.relu(self.bn1(self.conv1(stem)))
        conv2 = self.bn2(self.conv2(conv1))
        hidden = self.hidden(torch.relu(conv2 + stem).mean(dim=(2, 3))).tanh()
        return {"stem": stem, "conv1": conv1, "conv2": conv2, "hidden": hidden}


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def structure(net: Net) -> infoprune.Structure:
    return infoprune.trace(net, torch.zeros(1, 3, 8, 8))


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, 8, 8), torch.randint(5, (n,))) for n in (5, 4)]


def test_activations_are_taken_behind_norm_and_activation_function_and_before_the_addition(net, structure, data):
    seen: dict[str, list[Tensor]] = {}
    count = stream_activations(
        net,
        scored_layers(structure),
        data,
        None,
        lambda name, maps: seen.setdefault(name, []).append(maps.clone()),
        "t",
    )
    assert count == 9
    expected = net.eval().expected(torch.cat([x for x, _ in data]))
    assert set(seen) == {"stem", "conv1", "conv2", "hidden"}
    for name, parts in seen.items():
        assert torch.allclose(
            torch.cat(parts), as_maps(expected[name], "linear" if name == "hidden" else "conv"), atol=1e-6
        )


@pytest.mark.parametrize("name", ["hrank", "chip", "taylor", "least_squares"])
def test_scoring_leaves_no_trace(name: str, net, structure, data):
    net.train()
    net.bn2.eval()
    net.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    state, grad_mode = torch.get_rng_state(), torch.is_grad_enabled()
    scores = get_criterion({"name": name, "images": 6})(net, structure, data)
    assert {key: value.shape[0] for key, value in scores.items()} == {"stem": 8, "conv1": 6, "hidden": 7}
    assert net.training
    assert not net.bn2.training
    assert not net.conv1.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == grad_mode


def plain_hrank(maps: Tensor) -> Tensor:
    return torch.tensor([[torch.linalg.matrix_rank(m).item() for m in image] for image in maps]).double().mean(dim=0)


def plain_chip(maps: Tensor) -> Tensor:
    scores = []
    for image in maps.double().flatten(2):
        whole = torch.linalg.matrix_norm(image, "nuc")
        rows = []
        for j in range(len(image)):
            masked = image.clone()
            masked[j] = 0
            rows.append(whole - torch.linalg.matrix_norm(masked, "nuc"))
        scores.append(torch.stack(rows))
    return torch.stack(scores).mean(dim=0)


def test_hrank_and_chip_against_the_plain_procedures(net, structure, data):
    expected = net.eval().expected(torch.cat([x for x, _ in data]))
    assert torch.allclose(HRank()(net, structure, data)["conv1"], plain_hrank(expected["conv1"]))
    assert torch.allclose(CHIP()(net, structure, data)["conv1"], plain_chip(expected["conv1"]), rtol=1e-6)
    coupled = HRank(normalize="none", combine="sum")(net, structure, data)["stem"]
    assert torch.allclose(coupled, plain_hrank(expected["stem"]) + plain_hrank(expected["conv2"]))


def test_taylor_of_weights_against_the_plain_procedure(net, structure, data):
    scores = Taylor(of="weights")(net, structure, data)
    net.eval()
    expected = 0
    for x, y in data:
        loss = F.cross_entropy(net(x), y)
        gradient = torch.autograd.grad(loss, net.conv1.weight)[0]
        expected = expected + (gradient * net.conv1.weight).sum(dim=(1, 2, 3)).square() / len(data)
    assert torch.allclose(scores["conv1"], expected.double(), rtol=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "torch.nn.functional.cross_entropy", F.cross_entropy])
def test_taylor_of_activations_against_a_gate_on_each_image(loss, net, structure, data):
    scores = Taylor(loss=loss)(net, structure, data)
    net.eval()
    gates = torch.ones(1, 6, 1, 1, requires_grad=True)
    hook = net.act1.register_forward_hook(lambda module, args, output: output * gates)
    images = []
    for x, y in data:
        for image, label in zip(x, y, strict=True):
            value = F.cross_entropy(net(image[None]), label[None])
            images.append(torch.autograd.grad(value, gates)[0].flatten().abs() / 64)
    hook.remove()
    assert torch.allclose(scores["conv1"], torch.stack(images).double().mean(dim=0), rtol=1e-3, atol=1e-7)
    expected = net.expected(data[0][0])
    assert expected["conv1"].shape[2:] == (8, 8)


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 5, 9), (40, 9, 5), (40, 1, 7), (40, 1, 1), (3, 32, 32)])
def test_ranks_against_matrix_rank(shape: tuple[int, int, int]):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(shape, generator=generator)
    left = torch.randn(shape[0], shape[1], 2, generator=generator) @ torch.randn(
        shape[0], 2, shape[2], generator=generator
    )
    sparse = maps * (torch.rand(shape, generator=generator) < 0.15)
    bands = maps * (torch.rand(shape[0], shape[1], 1, generator=generator) < 0.5)
    for case in (maps, left, sparse, bands, torch.relu(left), 0 * maps, maps * 1e-30, maps.double()):
        assert torch.equal(feature_ranks(case), torch.linalg.matrix_rank(case.float()))


@pytest.mark.parametrize("shape", [(6, 5, 20), (6, 20, 5), (6, 7, 7), (2, 40, 9), (3, 1, 4), (3, 4, 1)])
def test_channel_independence_against_masking_each_row(shape: tuple[int, int, int]):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    scaled = matrices * torch.logspace(-3, 3, shape[1], dtype=torch.float64)[:, None]
    dead = matrices * (torch.arange(shape[1]) % 3 > 0)[:, None]
    twins = matrices[:, torch.arange(shape[1]) // 2 * 2]
    for case in (matrices, scaled, dead, twins, torch.relu(matrices), matrices * 1e-6, 0 * matrices):
        expected = torch.stack([plain_chip(matrix[None, :, None]) for matrix in case])
        scale = torch.linalg.matrix_norm(case, "nuc").max()
        assert torch.allclose(channel_independence(case), expected, rtol=1e-6, atol=1e-7 * float(scale))


def test_chip_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch):
    maps = torch.randn(7, 4, 3, 5)
    whole = CHIP().map_scores(maps)
    monkeypatch.setattr("infoprune.criteria.chip.CHUNK", 500)
    assert torch.allclose(CHIP().map_scores(maps), whole)


def test_images_are_counted_to_the_last_one(net, structure, data):
    first = HRank(images=7)(net, structure, data)
    cut = [data[0], (data[1][0][:2], data[1][1][:2])]
    second = HRank()(net, structure, cut)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "wrap", [lambda x, y: x, lambda x, y: [x, y], lambda x, y: (x, y, "extra"), lambda x, y: {"x": x}]
)
def test_batches_as_loaders_yield_them(wrap, net, structure, data):
    expected = HRank()(net, structure, data)["conv1"]
    assert torch.equal(HRank()(net, structure, [wrap(x, y) for x, y in data])["conv1"], expected)


@pytest.mark.parametrize(
    ("criterion", "batches", "error", "message"),
    [
        (HRank(), [], DataError, "'hrank': the calibration data holds no image"),
        (HRank(), ["image"], DataError, "a batch must be a tensor, .* got str"),
        (HRank(), [(3, 4)], DataError, "the inputs of a batch must be tensors, got int"),
        (Taylor(), [torch.zeros(2, 3, 8, 8)], DataError, "the calibration batches have no targets"),
        (HRank(), [torch.full((2, 3, 8, 8), float("nan"))], ConfigurationError, "stem: its activations hold 1024 NaN"),
        (CHIP(), None, ConfigurationError, "scores with data"),
    ],
)
def test_bad_calibration_data_says_what_is_wrong(criterion, batches, error, message, net, structure):
    with pytest.raises(error, match=message):
        criterion(net, structure, batches)
    assert net.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "hrank", "images": 0}, "images must be a whole number of at least 1, got 0"),
        ({"name": "taylor", "of": "weight"}, "of cannot be 'weight', did you mean 'weights'"),
        (
            {"name": "taylor", "loss": "cross_entrpy"},
            "loss 'cross_entrpy' is neither one of cross_entropy nor the import path",
        ),
        ({"name": "taylor", "loss": "torch.nn.functional.nothing"}, "is neither one of"),
        ({"name": "taylor", "loss": "math.pi"}, "is not a function"),
    ],
)
def test_impossible_options(options: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        get_criterion(options)


def test_a_layer_that_is_not_called_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.mix = nn.Linear(6, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).mean(dim=(2, 3))
            return self.head(x @ self.mix.weight.T)

    net = Odd()
    structure = infoprune.trace(net, torch.zeros(1, 3, 6, 6))
    images = [(torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long))]
    for criterion in (HRank(), Taylor()):
        with pytest.raises(ConfigurationError, match="mix cannot be observed: no convolution or linear call"):
            criterion(net, structure, images)
    assert Taylor(of="weights")(net, structure, images)["mix"].shape == (4,)


def test_filters_that_serve_several_groups_of_channels_are_averaged():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, groups=2), nn.Conv2d(4, 2, 1)).eval()
    structure = infoprune.trace(net, torch.zeros(1, 3, 6, 6))
    images = torch.randn(5, 3, 6, 6)
    scores = HRank().layer_scores(net, structure, [images])["2"]
    ranks = feature_ranks(net[:3](images).flatten(0, 1)).view(5, 2, 2).double()
    assert torch.allclose(scores, ranks.mean(dim=(0, 1)))


def test_a_calibration_pass_that_is_interrupted_changes_nothing(net, structure, data):
    def stops():
        yield data[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HRank()(net, structure, stops())
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", CRITERIA.names)
def test_a_layer_of_one_channel_keeps_it_and_the_others_are_scored(name: str):
    net = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    nn.init.uniform_(net[4].weight)
    labelled = [(torch.randn(7, 3, 8, 8), torch.arange(7) % 5)]
    result = infoprune.prune(net, labelled[0][0], criterion=name, filters=0.5, data=labelled)
    assert "there is only one" in result.structure.group("0").reason
    assert {group: scores.shape for group, scores in result.scores.items()} == {"3": (6,)}
    assert torch.isfinite(result.scores["3"]).all()
    assert (net[0].out_channels, net[3].in_channels, net[3].out_channels) == (1, 1, 3)
