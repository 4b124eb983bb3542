"""`least_squares`: errors of fits without a unit, against regressions computed from the data themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.criteria import LeastSquares, get_criterion
from infoprune.criteria.least_squares import Reader, removal_errors
from infoprune.errors import ConfigurationError, DataError
from infoprune.regression import input_rows, is_regression, output_rows

IMAGES = torch.randn(256, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def refitted_error(inputs: Tensor, weight: Tensor, columns: Tensor) -> float:
    """Mean over outputs of the share of their variance that a regression on some columns leaves."""
    wanted = inputs @ weight.T
    fitted = inputs[:, columns] @ torch.linalg.lstsq(inputs[:, columns], wanted).solution
    return ((wanted - fitted).square().mean(dim=0) / wanted.square().mean(dim=0)).mean().item()


@pytest.mark.parametrize("width", [1, 3])
def test_errors_are_those_of_regressions(width: int):
    units, generator = 5, torch.Generator().manual_seed(1)
    inputs = (
        torch.randn(400, units * width, generator=generator).double()
        @ torch.randn(units * width, units * width, generator=generator).double()
    )
    inputs -= inputs.mean(dim=0)
    weight = torch.randn(4, units * width, generator=generator).double()
    covariance = inputs.T @ inputs / len(inputs)
    scaled = weight / (inputs @ weight.T).square().mean(dim=0).sqrt()[:, None]
    unit = torch.arange(units).repeat_interleave(width)
    errors = removal_errors([Reader(scaled, covariance, unit)], units)
    left = list(range(units))
    for gone in errors.argsort().tolist():
        without = {
            one: refitted_error(inputs, weight, torch.isin(unit, torch.tensor([u for u in left if u != one])))
            for one in left
            if len(left) > 1
        }
        expected = without[gone] if without else 1.0  # without any input the whole variance is left
        assert errors[gone].item() == pytest.approx(expected, rel=1e-6)
        assert expected == pytest.approx(min(without.values(), default=1.0))  # the unit that adds the least went
        left.remove(gone)


def test_units_beside_those_of_other_groups_and_several_readers():
    covariance = torch.eye(3).double()
    first = Reader(torch.tensor([[1.0, 2.0, 5.0]]), covariance, torch.tensor([0, 1, -1]))
    second = Reader(torch.tensor([[3.0, 0.5]]), covariance[:2, :2], torch.tensor([0, 1]))
    assert removal_errors([first], 2).tolist() == [1.0, 5.0]
    assert removal_errors([first, second], 2).tolist() == [1 + 9 + 4 + 0.25, 4.25]


class Net(nn.Module):
    """A convolution that is read with its twin, by a convolution and after a reshape by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6 * 16, 5)
        with torch.no_grad():
            self.first.weight[3] = self.first.weight[5] * 2
            self.first.bias[3] = self.first.bias[5] * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(input=self.first(x).relu()).relu().flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_what_others_can_stand_in_for_goes_first(net: Net):
    structure = infoprune.trace(net, IMAGES[:1])
    scores = LeastSquares(ridge=1e-6)(net, structure, [IMAGES])
    assert {name: len(values) for name, values in scores.items()} == {"first": 8, "second": 6}
    assert scores["first"].argmin().item() in (3, 5)
    assert scores["first"].min() < 1e-3 < scores["first"].sort().values[1]


def test_reconstruction_recovers_more_than_behind_l1(net: Net):
    left = {}
    for criterion in ("l1", "least_squares"):
        cut = copy.deepcopy(net)
        infoprune.prune(
            cut, IMAGES[:1], criterion, filters=0.5, data=[IMAGES], allocation="uniform", round_to=1,
            reconstruction_batches=1,
        )  # fmt: skip
        left[criterion] = (cut(IMAGES) - net(IMAGES)).square().mean().item()
    assert left["least_squares"] < 0.9 * left["l1"]


def test_a_group_that_no_such_layer_reads_is_scored_by_its_norms():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    structure = infoprune.trace(net, IMAGES[:1])
    scores = LeastSquares()(net, structure, [IMAGES])
    assert torch.equal(scores["0"], get_criterion("l2")(net, structure)["0"])
    assert set(scores) == {"0", "2"}


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)), torch.randn(2, 3, 11, 9)),
        (nn.Conv2d(3, 4, 1), torch.randn(3, 6, 5)),
        (nn.Linear(5, 4), torch.randn(2, 7, 5)),
        (nn.Linear(5, 4), torch.randn(5)),
    ],
)
def test_rows_are_what_the_layer_computes_from(layer: nn.Module, inputs: Tensor):
    rows, places = input_rows(layer, inputs, most=6)
    outputs = output_rows(layer, layer(inputs), places)
    assert torch.allclose(rows @ layer.weight.flatten(1).T + layer.bias, outputs, atol=1e-5)


def test_scores_of_a_network_are_those_of_regressions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    inputs = torch.randn(300, 6).double()
    read = net[:2](inputs).detach() - net[:2](inputs).detach().mean(dim=0)
    scores = LeastSquares(ridge=0)(net, infoprune.trace(net, inputs[:2]), [inputs])["0"]
    alone = [refitted_error(read, net[2].weight.detach(), torch.arange(5) != unit) for unit in range(5)]
    assert scores.argmin().item() == alone.index(min(alone))
    assert scores.min().item() == pytest.approx(min(alone), rel=1e-4)


@pytest.mark.parametrize("ridge", [0, 0.01])
@pytest.mark.parametrize("case", ["twins", "dead", "all dead", "far from zero"])
def test_inputs_that_depend_on_each_other(case: str, ridge: float):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        if case == "twins":
            net[0].weight[1], net[0].bias[1] = net[0].weight[2], net[0].bias[2]
        elif case == "far from zero":
            net[0].bias += 30_000
        else:
            net[0].bias[slice(3, 5) if case == "dead" else slice(None)] = -100
    inputs = torch.randn(256, 6)
    scores = LeastSquares(ridge=ridge)(net, infoprune.trace(net, inputs[:2]), [inputs])["0"]
    assert scores.min() > -1e-4
    if case != "far from zero":
        assert scores.max() < 1.1
    if case in ("twins", "dead"):
        assert scores.argmin().item() in ((1, 2) if case == "twins" else (3, 4))


class ByImage(nn.Module):
    """Layers that get one image at a time, and nothing of those that are dark."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dark = nn.Conv2d(3, 40, 3), nn.Conv2d(40, 4, 3), nn.Conv2d(40, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x).relu()
        nothing = self.dark(maps[x.amax((1, 2, 3)) < -100]).sum()
        return torch.stack([self.second(image) for image in maps]) + nothing


def test_layers_that_get_one_image_or_none():
    net = ByImage()
    structure, data = infoprune.trace(net, IMAGES[:2]), [IMAGES[:24]]
    scores = LeastSquares()(net, structure, data)["first"]
    assert scores.min() < 0.5 * scores.max()
    original = copy.deepcopy(net)
    infoprune.shrink(net, structure.plan({"first": scores.argsort()[:20].tolist()}))
    before = (net(IMAGES) - original(IMAGES)).square().mean()
    infoprune.reconstruct(net, original, data)
    assert (net(IMAGES) - original(IMAGES)).square().mean() < 0.5 * before


def test_attention_in_the_network():
    net = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)).eval()
    inputs = torch.randn(4, 5, 6)
    scores = LeastSquares()(net, infoprune.trace(net, inputs), [inputs])
    assert len(scores["1.linear1"]) == 12


def test_inputs_that_are_not_finite_are_refused_by_the_name_of_the_layer(net: Net):
    structure, images = infoprune.trace(net, IMAGES[:1]), IMAGES.clone()
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="the inputs of layer 'second' are not finite"):
        LeastSquares()(net, structure, [images])


class Standardised(nn.Conv2d):
    """Weights are standardised before use."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class Padding(nn.Conv2d):
    """The image is padded before."""

    def _conv_forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return super()._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), *rest)


def test_layers_with_a_forward_of_their_own_are_no_regressions():
    assert not is_regression(Standardised(3, 4, 3))
    assert not is_regression(Padding(3, 4, 3))
    assert is_regression(nn.MultiheadAttention(4, 2).out_proj)


def test_bad_input(net: Net):
    structure = infoprune.trace(net, IMAGES[:1])
    with pytest.raises(ConfigurationError, match="least_squares"):
        LeastSquares()(net, structure)
    with pytest.raises(DataError, match="holds no image"):
        LeastSquares()(net, structure, [])
    with pytest.raises(ConfigurationError, match="ridge"):
        LeastSquares(ridge=-1)
    assert not any(module._forward_pre_hooks for module in net.modules())
