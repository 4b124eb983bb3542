"""Latency as a budget: measured on this device, the two models in turn."""

from __future__ import annotations

import copy
import random
import statistics
import warnings
from collections.abc import Mapping
from itertools import product
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
from infoprune.allocation.grid import Grid
from infoprune.allocation.latency import paired_ratios
from infoprune.allocation.timed import solve_timed
from infoprune.errors import BudgetError, ConfigurationError
from infoprune.models import CifarResNet
from tests.tiny import TinyModule, same, trainer


class Clock:
    """The clock of a device whose times are known: nothing else that this machine does shows in them."""

    seconds = 0.0

    @classmethod
    def now(cls, cuda: bool) -> float:
        return cls.seconds


def share_of(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    return statistics.median(paired_ratios(model, original, images, repeats=5))


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
    measure = LatencyShare(net, structure, IMAGES, repeats=5)
    assert measure({"conv": 40}) == 1.0
    half = measure({"conv": 20})
    assert half == pytest.approx(30 / 50, rel=1e-6)
    runs = net.runs
    assert measure({"conv": 20}) == half
    assert net.runs == runs
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_latency_budget_is_met(structure):
    measure = LatencyShare(Sleepy(), structure, IMAGES, repeats=3)
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
    assert share_of(calm, Sleepy(), IMAGES) == 1
    assert calm.runs == 5 + 4  # warmed up before
    assert 1 <= share_of(jittery, Sleepy(), IMAGES) <= 1.1
    assert jittery.runs == 4 * 5 + 4


def test_what_is_confirmed_is_measured_for_longer_and_the_first_try_forgotten(
    monkeypatch: pytest.MonkeyPatch, structure
) -> None:
    answers = iter([[0.5], [0.6, 0.6, 0.7], [0.8, 0.8, 0.8]])
    asked: list[tuple[int, float | None]] = []

    def measured(model: nn.Module, reference: nn.Module, inputs: Tensor, repeats: int, target: float) -> list[float]:
        asked.append((repeats, target))
        return next(answers)

    monkeypatch.setattr("infoprune.allocation.latency.paired_ratios", measured)
    measure = LatencyShare(Sleepy(), structure, IMAGES, repeats=5, now=0.5)
    measure.target = 0.3
    assert measure({"conv": 20}) == 0.5 * 0.5
    assert measure.confirm({"conv": 20}) == measure({"conv": 20}) == 0.5 * 0.6
    assert measure.confirm({"conv": 20}) == 0.5 * 0.75
    assert asked == [(5, 0.6), (20, 0.6), (20, 0.6)]


def test_far_from_the_target_fewer_pairs_are_run(structure) -> None:
    def runs(target: float | None) -> int:
        net = Sleepy()
        measure = LatencyShare(net, structure, IMAGES)
        measure.target = target
        assert measure({"conv": 20}) == pytest.approx(30 / 50, rel=1e-6)
        return net.runs

    usual = runs(None)
    assert runs(0.605) == usual == 15 + 4
    assert runs(0.7) == runs(0.5) == 7 + 4


def test_what_was_timed_too_well_once_is_measured_again(monkeypatch: pytest.MonkeyPatch, structure) -> None:
    """Of many candidates, the one that looks best is one that the clock was kind to."""
    asked: dict[int, int] = {}

    def noisy(model: nn.Module, *_: object) -> list[float]:
        width = model.conv.out_channels
        asked[width] = asked.get(width, 0) + 1
        kind = 0.95 if width == 22 and asked[width] == 1 else 1
        return [kind * (10 + width) / 50] * (1 if kind < 1 else 3)

    monkeypatch.setattr("infoprune.allocation.latency.paired_ratios", noisy)
    measure = LatencyShare(Sleepy(), structure, IMAGES)
    assert measure({"conv": 22}) == pytest.approx(0.608)
    widths = Uniform().widths(structure, budget=Budget("latency", 0.61), measure=measure)
    assert asked[22] == 2
    assert measure({"conv": 22}) == pytest.approx(0.64)
    assert widths["conv"] == 20


class Scattering:
    """Shares of MACs as a clock tells them: 1.5 % off when measured for short, 0.5 % for long, or too long by some."""

    def __init__(self, structure: infoprune.Structure, seed: int, longer: float = 0.0) -> None:
        self.structure, self.noise, self.longer = structure, random.Random(seed), longer
        self.known: dict[tuple[int, ...], float] = {}
        self.confirmed: dict[tuple[int, ...], list[float]] = {}

    def true(self, widths: Mapping[str, int]) -> float:
        return self.structure.cost(widths).macs / self.structure.cost().macs

    def measure(self, widths: Mapping[str, int]) -> float:
        return self.known.setdefault(tuple(widths.values()), self.true(widths) * self.noise.gauss(1, 0.015))

    def confirm(self, widths: Mapping[str, int]) -> float:
        shares = self.confirmed.setdefault(tuple(widths.values()), [])
        shares.append(self.true(widths) * self.noise.gauss(1 + self.longer, 0.005))
        self.known[tuple(widths.values())] = statistics.mean(shares)
        return statistics.mean(shares)


@pytest.mark.parametrize("depth", [8, 20])
def test_budgets_are_met_on_a_clock_that_scatters(depth: int) -> None:
    """Also where one unit of the stream that all blocks share is worth 2 %."""
    structure = infoprune.trace(CifarResNet(depth=depth), torch.zeros(1, 3, 32, 32))
    grids = {group.name: Grid(group.size) for group in structure.prunable}
    path = Uniform().path(structure, None, grids)
    for seed, target in product(range(8), (0.3, 0.5, 0.6, 0.8)):
        clock = Scattering(structure, seed)
        widths = solve_timed(path, grids, clock.measure, clock.confirm, target)
        assert 0.99 * target <= clock.measure(widths) <= target
        assert clock.true(widths) == pytest.approx(target, rel=0.02)
        assert len(clock.known) <= 80


def test_a_clock_whose_short_measurements_tell_nothing_still_gets_a_point_of_the_path() -> None:
    structure = infoprune.trace(CifarResNet(depth=20), torch.zeros(1, 3, 32, 32))
    grids = {group.name: Grid(group.size) for group in structure.prunable}
    clock = Scattering(structure, seed=0, longer=0.5)
    widths = solve_timed(Uniform().path(structure, None, grids), grids, clock.measure, clock.confirm, 0.5)
    assert tuple(widths.values()) in clock.confirmed
    assert 0.45 < clock.measure(widths) <= 0.5


def test_the_unpruned_model_counts_as_one():
    small = Sleepy(20)
    measure = LatencyShare(small, infoprune.trace(small, IMAGES), IMAGES, repeats=5, now=30 / 50)
    assert measure({"conv": 20}) == pytest.approx(30 / 50, rel=1e-6)
    assert measure({"conv": 5}) == pytest.approx(15 / 50, rel=1e-6)
    assert share_of(Sleepy(20), Sleepy(40), IMAGES) == pytest.approx(30 / 50, rel=1e-6)


def test_wrong_use_is_said(structure):
    with pytest.raises(ConfigurationError, match="repeats must be a whole number of at least 1, got 0"):
        LatencyShare(Sleepy(), structure, IMAGES, repeats=0)
    with pytest.raises(ConfigurationError, match="pass measure=LatencyShare"):
        Uniform().widths(structure, budget=Budget("latency", 0.5))


def test_prune_takes_a_latency_budget_and_says_what_is_reached() -> None:
    net = Sleepy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = infoprune.prune(net, IMAGES, "l1", latency=0.6)
    assert result.latency is not None
    assert result.latency == pytest.approx(0.6)
    assert net.conv.out_channels == 20
    assert share_of(net, Sleepy(), IMAGES) == pytest.approx(result.latency, rel=1e-6)
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
        share = share_of(pruned.net, Classifier(), torch.zeros(1, 3, 2, 2))
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
