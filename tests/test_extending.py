"""Criteria, allocations and rules of a user's own: by import path, by entry point, and wrong ones refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.criteria import CRITERIA, Criterion, LayerCriterion, WeightCriterion, get_criterion
from infoprune.errors import ConfigurationError, InfopruneError
from tests.commands import NET, SHAPE, Shell

OWN = """
from dataclasses import dataclass
from infoprune.allocation import Allocation
from infoprune.criteria import WeightCriterion

@dataclass(kw_only=True)
class Spread(WeightCriterion):
    power: float = 1.0
    def filter_scores(self, filters):
        return filters.flatten(1).std(dim=1) ** self.power

class NoCriterion:
    pass
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
    with pytest.raises(ConfigurationError, match=r"NoCriterion is no criterion.*Criterion"):
        get_criterion("own_parts.NoCriterion")
    with pytest.raises(ConfigurationError, match=r"'own_parts\.Spraed' cannot be imported"):
        get_criterion("own_parts.Spraed")
    with pytest.raises(ConfigurationError, match="has no option 'powr', did you mean 'power'"):
        get_criterion({"class_path": "own_parts.Spread", "init_args": {"powr": 2.0}})


def test_an_entry_point_of_an_installed_package(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_classes", dict(CRITERIA._classes))  # what is found here is known only here
    info = own_module / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[infoprune.criterion]\nspread = own_parts:Spread\n")
    assert type(get_criterion("spread")).__name__ == "Spread"
    with pytest.raises(ConfigurationError, match="import path"):
        get_criterion("spraed")


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
        (OneScoreEachInput(), r"shape \(3,\) for layer '0', which has 8 filters"),
        (UnknownLayer(), r"no scores for layer '0'"),
        (UnknownGroup(), r"group 'conv', which the structure does not have"),
        (TooFewUnits(), r"shape \(5,\) for group '0', which has 8 units"),
    ],
)
def test_scores_of_a_wrong_shape_are_refused_by_name(criterion: Criterion, message: str) -> None:
    net = two_layers()
    with pytest.raises(InfopruneError, match=message):
        infoprune.prune(net, X, criterion=criterion, filters=0.5)
    assert net[0].out_channels == 8


def test_a_rule_for_an_operator_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no operator is called 'aten::convolutoin'"):
        infoprune.register_rule("aten::convolutoin")


def test_old_names_of_the_structure_engine_still_work() -> None:
    with pytest.warns(DeprecationWarning, match="labels_of"):
        assert infoprune.structure.get_flow is infoprune.structure.labels_of
