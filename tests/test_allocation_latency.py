"""Latency as a budget: measured on this device, the two models in turn."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import infoprune
from infoprune import FilterPruning
from infoprune.allocation import Budget, Uniform, latency_share
from infoprune.allocation.latency import paired_ratio
from infoprune.errors import BudgetError, ConfigurationError
from tests.tiny import TinyModule, same, trainer


class Clock:
    """The clock of a device whose times are known: nothing else that this machine does shows in them."""

    seconds = 0.0

    @classmethod
    def now(cls, cuda: bool) -> float:
        return cls.seconds


class Sleepy(nn.Module):
    """Takes a fixed time on that device and some more for each channel."""

    def __init__(self, channels: int = 40) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1)
        self.head = nn.Conv2d(channels, 2, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            self.runs += 1
            Clock.seconds += (10 + self.conv.weight.shape[0]) / 1024  # without rounding
        return self.head(self.conv(x))


IMAGES = torch.zeros(1, 1, 2, 2)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infoprune.cost._now", Clock.now)


@pytest.fixture
def structure() -> infoprune.Structure:
    return infoprune.trace(Sleepy(), IMAGES)


def test_the_share_is_that_of_the_measured_times_and_measured_once(structure):
    net = Sleepy()
    state = copy.deepcopy(net.state_dict())
    measure = latency_share(net, structure, IMAGES, repeats=5)
    assert measure({"conv": 40}) == 1.0
    half = measure({"conv": 20})
    assert half == pytest.approx(30 / 50, rel=1e-6)
    runs = net.runs
    assert measure({"conv": 20}) == half
    assert net.runs == runs
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_latency_budget_is_met(structure):
    measure = latency_share(Sleepy(), structure, IMAGES, repeats=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        widths = Uniform().widths(structure, budget=Budget("latency", 0.6), measure=measure)
    assert measure(widths) <= 0.6
    assert widths["conv"] == 20
    with pytest.raises(BudgetError, match=r"latency budget of 0.05 is below the floor of 0"):
        Uniform().widths(structure, budget=Budget("latency", 0.05), measure=measure)


def test_where_times_scatter_more_pairs_are_run() -> None:
    class Jittery(Sleepy):
        """Every other run takes a tenth longer."""

        def forward(self, x: Tensor) -> Tensor:
            Clock.seconds += (self.runs // 2 % 2) * 5 / 1024
            return super().forward(x)

    calm, jittery = Sleepy(), Jittery()
    assert paired_ratio(calm, Sleepy(), IMAGES, repeats=5) == 1
    assert calm.runs == 5 + 4  # warmed up before
    assert 1 <= paired_ratio(jittery, Sleepy(), IMAGES, repeats=5) <= 1.1
    assert jittery.runs == 8 * 5 + 4


def test_the_unpruned_model_counts_as_one():
    small = Sleepy(20)
    measure = latency_share(small, infoprune.trace(small, IMAGES), IMAGES, repeats=5, original=Sleepy(40))
    assert measure({"conv": 20}) == pytest.approx(30 / 50, rel=1e-6)
    assert paired_ratio(Sleepy(20), Sleepy(40), IMAGES, repeats=5) == pytest.approx(30 / 50, rel=1e-6)


def test_wrong_use_is_said(structure):
    with pytest.raises(ConfigurationError, match="repeats must be a whole number of at least 1, got 0"):
        latency_share(Sleepy(), structure, IMAGES, repeats=0)
    with pytest.raises(ConfigurationError, match="pass measure=latency_share"):
        Uniform().widths(structure, budget=Budget("latency", 0.5))


def test_prune_takes_a_latency_budget_and_says_what_is_reached() -> None:
    net = Sleepy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = infoprune.prune(net, IMAGES, "l1", latency=0.6)
    assert result.latency is not None
    assert result.latency == pytest.approx(0.6)
    assert net.conv.out_channels == 20
    assert paired_ratio(net, Sleepy(), IMAGES, repeats=5) == pytest.approx(result.latency, rel=1e-6)
    assert infoprune.prune(Sleepy(), IMAGES, "l1", macs=0.5).latency is None


def test_prune_below_the_floor_leaves_the_model() -> None:
    net = Sleepy()
    before = copy.deepcopy(net)
    with pytest.raises(BudgetError, match=r"a latency budget of 0.05 is below the floor"):
        infoprune.prune(net, IMAGES, "l1", latency=0.05)
    with pytest.raises(ConfigurationError, match=r"macs=0.5 and latency=0.6 clash: give one"):
        infoprune.prune(net, IMAGES, "l1", latency=0.6, macs=0.5)
    assert same(net, before)


class Classifier(Sleepy):
    """Logits, so that it can be trained."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :1]).mean(dim=(2, 3))


def test_a_fit_reaches_its_latency_in_two_events_also_when_it_is_resumed(tmp_path: Path) -> None:
    def fit(**options: Any) -> tuple[FilterPruning, TinyModule]:
        module = TinyModule(net=Classifier())
        callback = FilterPruning("l1", latency=0.5, schedule=[1, 2], example_inputs=[1, 3, 2, 2])
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
        share = paired_ratio(pruned.net, Classifier(), torch.zeros(1, 3, 2, 2), repeats=5)
        assert share == pytest.approx(0.5, abs=0.03)
        assert pruning.options["latency"] == 0.5
    assert "below the floor" in _refused()


def _refused() -> str:
    module = TinyModule(net=Classifier())
    with pytest.raises(BudgetError) as caught:
        trainer(FilterPruning("l1", latency=0.05, schedule=1, example_inputs=[1, 3, 2, 2]), epochs=2).fit(
            module, DataLoader(TensorDataset(torch.randn(4, 3, 2, 2), torch.randint(2, (4,))), 4)
        )
    assert module.net.conv.out_channels == 40
    return str(caught.value)
