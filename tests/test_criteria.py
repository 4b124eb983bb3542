"""What all criteria share: names, options, bad weights, and units made of filters of several layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.criteria import CRITERIA, LayerCriterion, WeightCriterion, get_criterion
from infoprune.criteria.aggregation import combine_members, minmax
from infoprune.errors import ConfigurationError
from infoprune.structure import GroupSlot, Structure


class Residual(nn.Module):
    """A stem whose outputs are added to those of a block: ``stem`` and ``conv2`` are coupled, ``conv1`` is alone."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return Residual().eval()


@pytest.fixture
def structure(net: nn.Module) -> Structure:
    return infoprune.trace(net, torch.zeros(1, 3, 8, 8))


DATA_FREE = [name for name in CRITERIA.names if not get_criterion(name).needs_data]


@pytest.mark.parametrize("name", DATA_FREE)
def test_every_prunable_group_gets_one_finite_score_per_unit_and_the_model_stays(name: str, net, structure):
    before = copy.deepcopy(net.state_dict())
    if name == "batchnorm_scale":
        net.bn1.weight.data.uniform_()
    scores = get_criterion(name)(net, structure)
    assert {key: value.shape for key, value in scores.items()} == {"stem": (8,), "conv1": (12,)}
    assert all(value.dtype == torch.float64 and torch.isfinite(value).all() for value in scores.values())
    again = get_criterion({"name": name})(net, structure)
    assert all(torch.equal(scores[key], again[key]) for key in scores)
    before["bn1.weight"] = net.bn1.weight
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_names_and_options():
    criterion = get_criterion({"name": "capacity_independence", "balance": 0.25, "combine": "max"})
    assert criterion.options["balance"] == 0.25
    assert criterion.options["combine"] == "max"
    assert get_criterion(criterion) is criterion
    with pytest.raises(ConfigurationError, match="unknown criterion 'capacity_independance', did you mean 'capacity_"):
        get_criterion("capacity_independance")
    with pytest.raises(
        ConfigurationError, match="'capacity_independence' has no option 'balanse', did you mean 'balance'"
    ):
        get_criterion({"name": "capacity_independence", "balanse": 0.5})
    with pytest.raises(ConfigurationError, match="a criterion is given as a name"):
        get_criterion({"balance": 0.5})
    with pytest.raises(ConfigurationError, match="combine cannot be 'men', did you mean 'mean'"):
        get_criterion({"name": "l1", "combine": "men"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": 1.5}, "balance must be a number of at least 0 and at most 1, got 1.5"),
        ({"capacity": "histogramm"}, "capacity cannot be 'histogramm', did you mean 'histogram'"),
        ({"independence": "corelation"}, "independence cannot be 'corelation', did you mean 'correlation'"),
        ({"bins": 1}, "bins must be a whole number of at least 2, got 1"),
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1, got 0"),
    ],
)
def test_impossible_options_say_what_is_possible(options: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        get_criterion({"name": "capacity_independence", **options})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["l1", "capacity_independence"])
def test_weights_that_are_not_finite_name_their_layer(name: str, bad: float, net, structure):
    with torch.no_grad():
        net.conv1.weight[3, 0, 0, 0] = bad
    with pytest.raises(ConfigurationError, match="conv1: its weights hold 1 NaN or infinite values of 864"):
        get_criterion(name)(net, structure)


def test_scores_that_are_not_finite_name_their_layer(net, structure):
    @dataclass(kw_only=True)
    class Broken(WeightCriterion):
        def filter_scores(self, filters: Tensor) -> Tensor:
            return torch.log(filters.sum(dim=(1, 2)) * 0)

    with pytest.raises(ConfigurationError, match=r"'Broken' gives 8 NaN or infinite scores .* filters of layer 'stem'"):
        Broken()(net, structure)


def test_a_group_of_one_layer_keeps_the_criterions_own_values(net, structure):
    scores = get_criterion("l1")(net, structure)
    assert torch.allclose(scores["conv1"], net.conv1.weight.double().abs().sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
@pytest.mark.parametrize("normalize", ["minmax", "mean", "none"])
def test_coupled_layers_meet_on_a_common_scale(normalize: str, combine: str, net, structure):
    net.conv2.weight.data *= 1000
    scores = get_criterion({"name": "l1", "normalize": normalize, "combine": combine})(net, structure)
    rows = [layer.weight.double().abs().sum(dim=(1, 2, 3)) for layer in (net.stem, net.conv2)]
    if normalize == "minmax":
        rows = [(row - row.min()) / (row.max() - row.min()) for row in rows]
    if normalize == "mean":
        rows = [row / row.mean() for row in rows]
    expected = {"mean": (rows[0] + rows[1]) / 2, "sum": rows[0] + rows[1], "max": torch.maximum(*rows)}[combine]
    assert torch.allclose(scores["stem"], expected)


def test_a_unit_of_several_filters_takes_their_mean():
    slot = GroupSlot("conv.weight", 0, np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1]))
    values = torch.tensor([1.0, 10.0, 3.0, 30.0], dtype=torch.float64)
    assert combine_members([(values, slot)], 2, "minmax", "mean").tolist() == [2.0, 20.0]


def test_part_of_a_layer_is_placed_by_its_slot():
    slot = GroupSlot("conv.weight", 0, np.array([3, 1]), np.array([0, 1]))
    values = torch.tensor([1.0, 10.0, 3.0, 30.0], dtype=torch.float64)
    assert combine_members([(values, slot)], 2, "minmax", "mean").tolist() == [30.0, 10.0]


def test_minmax_does_not_stretch_rounding():
    noise = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    assert noise.unique().numel() == 2
    assert minmax(noise).tolist() == [0.0, 0.0, 0.0]
    assert minmax(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_criterion_of_the_users_own_is_found_by_its_name(net, structure):
    @CRITERIA.register("test_first_weight")
    @dataclass(kw_only=True)
    class FirstWeight(WeightCriterion):
        """Score a filter by one of its weights."""

        scale: float = 1.0

        def filter_scores(self, filters: Tensor) -> Tensor:
            return self.scale * filters[:, 0, 0]

    try:
        scores = get_criterion({"name": "test_first_weight", "scale": 2.0})(net, structure)
        assert torch.allclose(scores["conv1"], 2 * net.conv1.weight[:, 0, 0, 0].double())
    finally:
        del CRITERIA._classes["test_first_weight"]


def test_criteria_with_data_ask_for_it(net, structure):
    class NeedsData(LayerCriterion):
        needs_data = True

        def layer_scores(self, model, structure, data):
            return {}

    with pytest.raises(ConfigurationError, match="'NeedsData' scores with data: pass batches of training images"):
        NeedsData()(net, structure)
