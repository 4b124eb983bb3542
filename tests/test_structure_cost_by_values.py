"""The cost of models that run some layers as often as values say is PyTorch's count, before and after a cut."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import infoprune
from infoprune.structure.tracing import values

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _numbers_are_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BUDGET", 0)


class TwoStages(nn.Module):
    """Scores all places, and looks once more at those above a threshold, with attention among them."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.features, self.scores = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.hidden, self.boxes = nn.Linear(8, 24), nn.Linear(24, 4)
        nn.init.constant_(self.scores.weight, 0.1)
        nn.init.zeros_(self.scores.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x).relu()
        scores = self.scores(features)
        rows = features.permute(0, 2, 3, 1)[scores[:, 0] > self.threshold]
        hidden = self.hidden(rows).relu()
        return scores, self.boxes(torch.softmax(hidden @ hidden.T, 1) @ hidden)


def counted(net: nn.Module, x: Tensor) -> float:
    """Return the multiply-accumulates of one example by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("threshold", [0.2, 0.3, -1.0], ids=["many", "few", "all"])
def test_a_second_stage_is_counted_for_the_places_that_the_example_has(threshold: float) -> None:
    torch.manual_seed(1)
    net = TwoStages(threshold)
    expected = counted(net, X)
    structure = infoprune.trace(net, X)
    assert structure.passes.on_shapes
    assert structure.cost().macs == round(expected)
    plan = structure.plan({"hidden": range(9)})  # the scores stay as they were, and so does the number of places
    after = structure.cost_of(plan)
    assert structure.cost({"hidden": 15}) == after
    infoprune.shrink(net, plan)
    assert after.macs == round(counted(net, X)) < expected


def test_layers_that_the_trace_ran_for_nothing_are_counted_too() -> None:
    torch.manual_seed(1)

    class Rare(TwoStages):
        """Looks at the places whose score is small, which made-up numbers are not."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.features(x).relu()
            scores = self.scores(features)
            rows = features.permute(0, 2, 3, 1)[scores[:, 0] < self.threshold]
            return scores, self.boxes(self.hidden(rows).relu())

    net = Rare(0.3)
    structure = infoprune.trace(net, X)
    costs = structure.layer_costs()
    rows = int((net(X)[0] < 0.3).sum())
    assert rows > 50
    assert costs["hidden"].macs == round(rows * 8 * 24 / len(X))
    plan = structure.plan({"hidden": range(4)})
    assert structure.layer_costs(plan)["boxes"].macs == round(rows * 20 * 4 / len(X))


def test_a_budget_is_kept_by_what_really_runs() -> None:
    torch.manual_seed(1)
    net = TwoStages(0.2)
    whole = counted(net, X)
    result = infoprune.prune(net, X, criterion="l1", macs=0.6, frozen=["features"], round_to=1)
    assert result.before.macs == round(whole)
    assert counted(net, X) <= 0.6 * whole


def test_the_run_leaves_the_model_as_it_was_and_is_made_once() -> None:
    torch.manual_seed(1)
    net = TwoStages(0.2).train()
    net.features.register_forward_hook(lambda *_: runs.append(1))
    runs: list[int] = []
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    structure = infoprune.trace(net, X)
    traced = len(runs)
    costs = {structure.cost(), structure.cost_of(infoprune.PruningPlan()), infoprune.trace(net, X).cost()}
    assert len(costs) == 1
    assert len(runs) == traced + 1 + traced + 1
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_cost_that_is_asked_for_after_the_cut_warns() -> None:
    torch.manual_seed(1)
    net = TwoStages(0.2)
    structure = infoprune.trace(net, X)
    infoprune.shrink(net, structure.plan({"hidden": [0]}))
    with pytest.warns(UserWarning, match="TwoStages depends on values.*ask for the cost before the cut"):
        structure.cost()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structure.cost()


def test_a_model_without_values_is_counted_as_traced() -> None:
    structure = infoprune.trace(TwoStages(0.2).to("meta"), X)
    with pytest.warns(UserWarning, match=r"may be counted too low: it does not run on the example inputs \(\w+Error"):
        assert structure.cost().macs >= 16 * 16 * 8 * 9 * 3
    assert structure.layer_costs()["features"].macs == 16 * 16 * 8 * 9 * 3


def test_a_trace_that_reads_no_values_runs_nothing_for_its_cost() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    expected = counted(net, X)
    structure = infoprune.trace(net, X)
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    assert structure.cost().macs == round(expected)
