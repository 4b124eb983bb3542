"""Criteria, allocations and rules of a user's own: by import path, by entry point, and wrong ones refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Allocation
from infoprune.allocation.grid import WidthGrid
from infoprune.criteria import (
    CRITERIA,
    Criterion,
    FeatureMapCriterion,
    LayerCriterion,
    WeightCriterion,
    get_criterion,
)
from infoprune.errors import ConfigurationError, InfopruneError
from tests.commands import NET, SHAPE, Shell

OWN = """
from dataclasses import dataclass
from infoprune.allocation import Allocation
from infoprune.criteria import WeightCriterion
from torch import nn

@dataclass(kw_only=True)
class Spread(WeightCriterion):
    power: float = 1.0
    def filter_scores(self, filters):
        return filters.flatten(1).std(dim=1) ** self.power

class NoCriterion:
    pass

def small_net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1))
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    return tmp_path


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.usefixtures("own_module")
def test_a_class_by_its_import_path() -> None:
    assert get_criterion("own_parts.Spread").short_name == "Spread"
    spec = {"class_path": "own_parts.Spread", "init_args": {"power": 2.0}}
    assert get_criterion(spec).options["power"] == 2.0
    with pytest.raises(ConfigurationError, match=r"NoCriterion' is no criterion.*Criterion"):
        get_criterion("own_parts.NoCriterion")
    with pytest.raises(ConfigurationError, match=r"'own_parts\.Spraed' cannot be imported"):
        get_criterion("own_parts.Spraed")
    with pytest.raises(ConfigurationError, match="has no option 'powr', did you mean 'power'"):
        get_criterion({"class_path": "own_parts.Spread", "init_args": {"powr": 2.0}})


ENTRY_POINTS = """
[infoprune.criterion]
spread = own_parts:Spread
absent = own_parts:Absent
unfit = own_parts:NoCriterion
[infoprune.model]
small_net = own_parts:small_net
"""


@pytest.fixture
def installed(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_classes", dict(CRITERIA._classes))  # what is found here is known only here
    info = own_module / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


@pytest.mark.usefixtures("installed")
def test_entry_points_of_an_installed_package() -> None:
    assert get_criterion("spread").short_name == "spread"
    with pytest.raises(ConfigurationError, match=r"unknown criterion 'spraed', did you mean 'spread'.*import path"):
        get_criterion("spraed")
    with pytest.raises(ConfigurationError, match=r"'own_parts:Absent' \(entry point 'absent'\) cannot be imported"):
        get_criterion("absent")
    with pytest.raises(ConfigurationError, match=r"NoCriterion.* is no criterion"):
        get_criterion("unfit")


@pytest.mark.usefixtures("installed")
def test_the_command_line_takes_a_model_by_its_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Shell(capsys)("inspect", "--model", "small_net", "--model.width", "6", "--input_shape", "1,3,8,8", "--json")
    assert ran.json["groups"][0]["units"] == 6


@pytest.mark.usefixtures("own_module")
def test_models_that_are_none_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    assert "is no class that derives from Module" in shell.refuses("inspect", "--model", "own_parts.NoCriterion")
    assert "'own_parts' has no attribute" in shell.refuses("inspect", "--model", "own_parts.Absent")


def test_the_command_line_takes_an_import_path(own_module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = own_module / "out"
    shell = Shell(capsys)
    ran = shell("prune", *NET, *SHAPE, "--criterion", "own_parts.Spread", "--filters", "0.7", "--out", out)
    assert ran.code == 0, ran.err
    assert json.loads((out / "record.json").read_text())["events"][0]["criterion"] == "Spread"


class Trains(LayerCriterion):
    """Runs the model forward and backward in train mode, and restores nothing."""

    needs_data = True

    def layer_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        for images in data:
            model.train()(images).square().mean().backward()
        return {layer.name: model.get_parameter(layer.weight).grad.flatten(1).norm(dim=1) for layer in structure.layers}


def test_scoring_leaves_no_trace_in_the_model() -> None:
    net = two_layers().eval()
    net[0].weight.grad = marked = torch.ones_like(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Trains()(net, infoprune.trace(net, X), [torch.randn(4, 3, 8, 8)] * 2)
    assert net[0].weight.grad is marked
    assert bool((marked == 1).all())
    assert net[3].weight.grad is None
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class OneScoreEachInput(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.abs().sum((0, 2))


class UnknownLayer(LayerCriterion):
    def layer_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        return {"0.weight": torch.ones(8)}


class UnknownGroup(Criterion):
    def group_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        return {"conv": torch.ones(8)}


class TooFewUnits(Criterion):
    def group_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        return {group.name: torch.ones(5) for group in structure.prunable}


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (OneScoreEachInput(), r"shape \(3,\) for the 8 filters of layer '0'"),
        (UnknownLayer(), r"no scores for layer '0'"),
        (UnknownGroup(), r"group 'conv', which the structure does not have"),
        (TooFewUnits(), r"shape \(5,\) for the 8 units of group '0'"),
    ],
)
def test_scores_of_a_wrong_shape_are_refused_by_name(criterion: Criterion, message: str) -> None:
    net = two_layers()
    with pytest.raises(InfopruneError, match=message):
        infoprune.prune(net, X, criterion=criterion, filters=0.5)
    assert net[0].out_channels == 8


class OfNoTensors(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).norm(dim=1).tolist()  # type: ignore[return-value]


class OfNothing(LayerCriterion):
    def layer_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        pass


class OfComplexNumbers(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).sum(1) * 1j


class OfNoNumbers(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).sum(1) / 0 * 0


class OfNoGroup(Criterion):
    def group_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        return {}


class Failing(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        raise ZeroDivisionError("on purpose")


class OfImages(FeatureMapCriterion):
    def map_scores(self, maps: Tensor) -> Tensor:
        return maps.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (OfNoTensors(), "values of type list for the 8 filters of layer '0'"),
        (OfNothing(), "gives NoneType; return a dict from the name of each layer"),
        (OfComplexNumbers(), "complex scores for the 8 filters of layer '0'"),
        (OfNoNumbers(), "8 NaN or infinite scores of 8 for the 8 filters of layer '0'"),
        (OfNoGroup(), "no scores for any of the 1 prunable groups"),
        (Failing(), r"'Failing' failed on layer '0' \(ZeroDivisionError: on purpose\)"),
        (OfImages(), r"'OfImages' gives scores of shape \(2,\) for the feature maps of layer '0'.*shape \(2, 8\)"),
    ],
)
def test_a_criterion_that_fails_is_named(criterion: Criterion, message: str) -> None:
    net = two_layers()
    with pytest.raises(ConfigurationError, match=message):
        infoprune.prune(net, X, criterion=criterion, filters=0.5, data=[torch.randn(2, 3, 8, 8)])
    assert net[0].out_channels == 8


class Rewrites(LayerCriterion):
    """Changes all that can be changed of a model."""

    def layer_scores(self, model, structure, data):  # type: ignore[no-untyped-def]
        for parameter in model.parameters():
            parameter.data.zero_()
        model.requires_grad_(False).double()
        model[0].register_forward_hook(lambda *_: None)
        model[2] = nn.Sigmoid()
        return {"0": torch.arange(8.0), "3": torch.arange(4.0)}


def test_what_a_criterion_changes_is_put_back() -> None:
    net = two_layers()
    before, relu = {name: value.clone() for name, value in net.state_dict().items()}, net[2]
    Rewrites()(net, infoprune.trace(net, X))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net[2] is relu
    assert not net[0]._forward_hooks


class InPlace(WeightCriterion):
    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.abs_().sum((1, 2))


def test_filters_may_be_computed_with_in_place_in_double_precision_too() -> None:
    net = two_layers().double()
    InPlace()(net, infoprune.trace(net, X.double()))
    assert net[0].weight.min() < 0


@dataclass(kw_only=True)
class Needy(WeightCriterion):
    power: float

    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).norm(dim=1) ** self.power


class Undecorated(WeightCriterion):
    power: float = 1.0

    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).norm(dim=1) ** self.power


class Unfinished(WeightCriterion):
    pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{__name__}.Needy", "needs its option 'power'"),
        (f"{__name__}.Unfinished", "Unfinished does not define filter_scores"),
        ({"name": f"{__name__}.Undecorated", "power": 2.0}, r"put @dataclass\(kw_only=True\) above class Undecorated"),
        ({"class_path": f"{__name__}.Needy", "init_args": 2.0}, "init_args of .*Needy must be a mapping, got 2.0"),
        (Needy, r"give Needy\(\) instead of the class"),
    ],
)
def test_a_criterion_that_cannot_be_made_is_named(spec: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        get_criterion(spec)


class Returns(Allocation):
    """Returns what it is told to as widths."""

    def __init__(self, make: Callable[[Mapping[str, WidthGrid], float], Any]) -> None:
        self.make = make

    def widths_at(self, structure, scores, grids, costs):  # type: ignore[no-untyped-def]
        return lambda sparsity: self.make(grids, sparsity)


class NoFunction(Allocation):
    def widths_at(self, structure, scores, grids, costs):  # type: ignore[no-untyped-def]
        return {name: grid.lowest for name, grid in grids.items()}


def each(width: Callable[[WidthGrid, float], Any]) -> Allocation:
    return Returns(lambda grids, sparsity: {name: width(grid, sparsity) for name, grid in grids.items()})


@pytest.mark.parametrize("target", [{"macs": 0.6}, {"filters": 0.5}])
@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (NoFunction(), "widths_at returns dict; return a function"),
        (Returns(lambda grids, sparsity: None), "gives NoneType; return a dict"),
        (Returns(lambda grids, sparsity: {}), "no width for group '0'"),
        (Returns(lambda grids, sparsity: {"0": 8, "conv": 3}), "for group 'conv', which is not to be cut"),
        (
            each(lambda grid, sparsity: grid.size * (1 - sparsity)),
            r"a width of 8\.0, which must be a whole number from 1",
        ),
        (each(lambda grid, sparsity: int(grid.size * (1 - sparsity))), "a width of 0, which must be"),
        (each(lambda grid, sparsity: grid.size + 1), "a width of 9, which must be"),
        (
            each(lambda grid, sparsity: grid.at(sparsity)),
            "1 units at sparsity 0 and 8 at sparsity 1; widths must shrink",
        ),
        (each(lambda grid, sparsity: {}["0"]), r"'Returns' failed at a sparsity of 0 \(KeyError: '0'\)"),
    ],
)
def test_an_allocation_of_impossible_widths_is_named(allocation: Allocation, message: str, target: Any) -> None:
    net = two_layers()
    with pytest.raises(ConfigurationError, match=message):
        infoprune.prune(net, X, criterion="l1", allocation=allocation, **target)
    assert net[0].out_channels == 8


def test_widths_off_the_grid_are_refused() -> None:
    allocation = each(lambda grid, sparsity: max(4, 8 - int(4 * sparsity)))
    with pytest.raises(ConfigurationError, match="must be 8 or a multiple of 4 from 4 to 8"):
        infoprune.prune(two_layers(), X, criterion="l1", allocation=allocation, filters=0.7, round_to=4)


def test_a_rule_for_an_operator_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no operator is called 'aten::convolutoin'"):
        infoprune.register_rule("aten::convolutoin")


@pytest.mark.parametrize(
    ("names", "given"),
    [((None,), "None"), ((), "nothing"), ((["aten::add"],), r"\['aten::add'\]"), ((len,), "<built-in")],
)
def test_a_rule_for_something_else_than_an_operator_is_refused(names: tuple[Any, ...], given: str) -> None:
    with pytest.raises(ConfigurationError, match=f"takes names of operators, .*, got {given}"):
        infoprune.register_rule(*names)


def test_a_rule_that_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a rule is a function .*, got None"):
        infoprune.register_rule("aten::convolution")(None)  # type: ignore[arg-type]


def test_old_names_of_the_structure_engine_still_work() -> None:
    with pytest.warns(DeprecationWarning, match="labels_of"):
        assert infoprune.structure.get_flow is infoprune.structure.labels_of
