"""Latency as a budget: kept by the clock of a backend."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import infoprune
from infoprune import FilterPruning
from infoprune.allocation import Budget, LatencyShare, Uniform
from infoprune.allocation.latency import LOOKS
from infoprune.backends.timing import PairedRuns
from infoprune.errors import BudgetError, ConfigurationError
from infoprune.models import CifarResNet
from tests.tiers import slow
from tests.tiny import TinyModule, same, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.zeros(1, 1, 2, 2)


class Net(nn.Module):
    """A convolution of some width, and a head."""

    def __init__(self, channels: int = 40) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1)
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x))
        return out


def device(model: nn.Module, inputs: Any) -> float:
    """A device whose times are known: a fixed one and some more for each channel."""
    return (10 + model.get_submodule("conv").weight.shape[0]) / 1000


@pytest.fixture
def structure() -> infoprune.Structure:
    return infoprune.trace(Net(), IMAGES)


def test_what_was_measured_corrects_what_is_counted(structure: infoprune.Structure) -> None:
    net = Net()
    state = copy.deepcopy(net.state_dict())
    share = LatencyShare(net, structure, IMAGES, backend=device)
    assert share({"conv": 40}) == 1.0
    assert share({"conv": 20}) == pytest.approx(20 / 40)  # of the MACs
    assert share.measured({"conv": 20}) == pytest.approx(30 / 50)
    assert share({"conv": 20}) == pytest.approx(30 / 50)
    assert share({"conv": 30}) == pytest.approx(40 / 50, rel=0.05)  # by the same power of the MACs
    assert share({"conv": 10}) == pytest.approx(20 / 50, rel=0.15)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_widths_are_measured_once(structure: infoprune.Structure) -> None:
    calls = []

    def counting(model: nn.Module, inputs: Any) -> float:
        calls.append(model)
        return device(model, inputs)

    share = LatencyShare(Net(), structure, IMAGES, backend=counting)
    share.measured({"conv": 20})
    asked = len(calls)
    share.measured({"conv": 20})
    assert len(calls) == asked


def test_a_latency_budget_is_met(structure: infoprune.Structure) -> None:
    share = LatencyShare(Net(), structure, IMAGES, backend=device)
    widths = Uniform().widths(structure, budget=Budget("latency", 0.6), measure=share)
    assert widths["conv"] == 20
    assert share.measured(widths) == pytest.approx(0.6)
    with pytest.raises(BudgetError, match=r"latency budget of 0.05 is below the floor of 0"):
        Uniform().widths(structure, budget=Budget("latency", 0.05), measure=share)


def test_widths_too_coarse_for_the_budget_are_said(structure: infoprune.Structure) -> None:
    share = LatencyShare(Net(), structure, IMAGES, backend=device)
    with pytest.warns(UserWarning, match=r"the latency budget of 0.75 is met at 0.7, "):
        widths = Uniform().widths(structure, budget=Budget("latency", 0.75), measure=share, round_to=25)
    assert widths == {"conv": 25}


def blocks_of_eight(model: nn.Module, inputs: Any) -> float:
    """A device that computes channels in blocks of eight, and takes some time for every layer."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return sum(1 + -(-conv.out_channels // 8) * -(-conv.in_channels // 8) for conv in convolutions) / 1000


@pytest.mark.parametrize("keep", [0.5, *map(slow, (0.8, 0.35))])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_budgets_are_met_where_time_does_not_follow_the_macs(keep: float, noise: float) -> None:
    """Also on a clock whose single runs scatter by 2 %."""
    random.seed(0)
    images = torch.zeros(1, 3, 32, 32)
    model = CifarResNet(depth=20)
    share = LatencyShare(
        model,
        infoprune.trace(model, images),
        images,
        repeats=15,
        backend=lambda model, inputs: blocks_of_eight(model, inputs) * random.gauss(1, noise),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        widths = Uniform().widths(share.structure, budget=Budget("latency", keep), measure=share, round_to=4)
    pruned = copy.deepcopy(model)
    infoprune.shrink(
        pruned, share.structure.plan({n: range(share.structure.group(n).size - w) for n, w in widths.items()})
    )
    true = blocks_of_eight(pruned, images) / blocks_of_eight(model, images)
    assert true <= keep * (1.03 if noise else 1)
    assert abs(true - share.measured(widths)) < 0.02


@pytest.mark.slow
def test_a_backend_that_loads_quickly_is_timed_layer_by_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFOPRUNE_CACHE", str(tmp_path))
    wide = nn.Sequential(*(nn.Conv2d(a, b, 3) for a, b in ((3, 64), (64, 64), (64, 8)))).eval()
    images = torch.randn(2, 3, 24, 24)
    result = infoprune.prune(wide, images, "l1", latency=0.7)
    assert result.latency is not None
    assert 0.3 < result.latency <= 0.7
    (kept,) = tmp_path.glob("latency-eager-*.json")
    assert "conv" in kept.read_text()
    kept.write_text("{ not a table")
    share = LatencyShare(wide, infoprune.trace(wide, images), images)
    assert share({}) == 1.0
    assert "conv" in kept.read_text()


def runs(*seconds: float) -> Callable[[], float]:
    """A model whose runs take these times in turn."""
    answers = iter(seconds * 1000)
    return lambda: next(answers)


def test_pairs_of_runs_tell_how_sure_their_share_is() -> None:
    steady, scattered = PairedRuns(runs(0.6), runs(1.0)), PairedRuns(runs(0.5, 0.6, 0.7), runs(1.0))
    for pairs in (steady, scattered):
        pairs.more(15)
        assert pairs.share == 0.6
    assert steady.error == 0
    before = scattered.error
    scattered.more(45)
    assert 0 < scattered.error == pytest.approx(before / 2, rel=0.1)


def count_pairs(structure: infoprune.Structure, target: float, noise: float) -> int:
    """Return how often the original is run until the share of half of the channels is known."""
    random.seed(1)
    asked = []

    def scattering(model: nn.Module, inputs: Any) -> float:
        asked.append(model.get_submodule("conv").weight.shape[0])
        return device(model, inputs) * random.gauss(1, noise)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LatencyShare(Net(), structure, IMAGES, repeats=15, backend=scattering).within(target, lambda _: {"conv": 20})
    return asked.count(40)


def test_near_the_target_more_pairs_are_run_where_times_scatter(structure: infoprune.Structure) -> None:
    far, near = 0.9, 0.605  # of 0.6, which it takes
    assert count_pairs(structure, far, 0.0) == count_pairs(structure, far, 0.02) == 7
    assert count_pairs(structure, near, 0.0) == 15
    assert 15 < count_pairs(structure, near, 0.1) <= LOOKS * 15


def test_a_share_that_scatters_is_said(structure: infoprune.Structure) -> None:
    random.seed(0)
    share = LatencyShare(
        Net(), structure, IMAGES, backend=lambda model, inputs: device(model, inputs) * random.uniform(0.5, 1.5)
    )
    with pytest.warns(UserWarning, match=r"give or take \d+%: single runs scatter too much"):
        widths = share.within(0.9, lambda _: {"conv": 20})
    assert share.error(widths) > 0.03


def test_after_a_first_cut_shares_multiply() -> None:
    small = Net(20)
    share = LatencyShare(small, infoprune.trace(small, IMAGES), IMAGES, now=30 / 50, backend=device)
    assert share.measured({"conv": 20}) == pytest.approx(30 / 50)
    assert share.measured({"conv": 5}) == pytest.approx(15 / 50)


def test_wrong_use_is_said(structure: infoprune.Structure) -> None:
    with pytest.raises(ConfigurationError, match="repeats must be a whole number of at least 1, got 0"):
        LatencyShare(Net(), structure, IMAGES, repeats=0)
    with pytest.raises(ConfigurationError, match="pass measure=LatencyShare"):
        Uniform().widths(structure, budget=Budget("latency", 0.5))


def test_prune_takes_a_latency_budget_and_says_what_is_reached() -> None:
    net = Net()
    result = infoprune.prune(net, IMAGES, "l1", latency=0.6, backend=device)
    assert result.latency == pytest.approx(0.6)
    assert net.conv.out_channels == 20
    assert infoprune.prune(Net(), IMAGES, "l1", macs=0.5).latency is None


def test_prune_below_the_floor_leaves_the_model() -> None:
    net = Net()
    before = copy.deepcopy(net)
    with pytest.raises(BudgetError, match=r"a latency budget of 0.05 is below the floor"):
        infoprune.prune(net, IMAGES, "l1", latency=0.05, backend=device)
    with pytest.raises(ConfigurationError, match=r"macs=0.5 and latency=0.6 clash: give one"):
        infoprune.prune(net, IMAGES, "l1", latency=0.6, macs=0.5)
    with pytest.raises(ConfigurationError, match=r"returned nan: it has to return the seconds"):
        infoprune.prune(net, IMAGES, "l1", latency=0.6, backend=lambda model, inputs: float("nan"))
    assert same(net, before)


class Classifier(Net):
    """Logits, so that it can be trained."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :1]).mean(dim=(2, 3))


def test_a_fit_reaches_its_latency_in_two_events_also_when_it_is_resumed(tmp_path: Path) -> None:
    def fit(**options: Any) -> tuple[FilterPruning, TinyModule]:
        module = TinyModule(net=Classifier())
        callback = FilterPruning(
            "l1", latency=0.5, backend=device, schedule=[1, 2], round_to=1, example_inputs=[1, 3, 2, 2], module="net"
        )
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        data = DataLoader(TensorDataset(torch.randn(4, 3, 2, 2), torch.randint(2, (4,))), 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(callback, saver, epochs=3, enable_checkpointing=True).fit(module, data, **options)
        return callback, module

    callback, module = fit()
    assert len(callback.history) == 2
    resumed, other = fit(ckpt_path=tmp_path / "epoch=1.ckpt")
    for pruning, pruned in ((callback, module), (resumed, other)):
        assert pruned.trainer.callback_metrics["prune/latency_ratio"].item() <= 0.5
        assert device(pruned.net, None) / device(Classifier(), None) == pytest.approx(0.5, abs=0.03)
        assert pruning.options["latency"] == 0.5
        assert pruning.options["backend"] == "function"
    assert "below the floor" in _refused()


def _refused() -> str:
    module = TinyModule(net=Classifier())
    pruning = FilterPruning("l1", latency=0.05, backend=device, schedule=1, example_inputs=[1, 3, 2, 2], module="net")
    with pytest.raises(BudgetError) as caught:
        trainer(pruning, epochs=2).fit(
            module, DataLoader(TensorDataset(torch.randn(4, 3, 2, 2), torch.randint(2, (4,))), 4)
        )
    assert module.net.conv.out_channels == 40
    return str(caught.value)
