"""Latency as a budget: measured on this device, the two models in turn."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Budget, Uniform, latency_share
from infoprune.allocation.latency import paired_ratio
from infoprune.errors import BudgetError, ConfigurationError


class Sleepy(nn.Module):
    """Takes a fixed time and some more for each channel: a device whose times are known."""

    def __init__(self, channels: int = 40) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1)
        self.head = nn.Conv2d(channels, 2, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            self.runs += 1
            time.sleep(0.01 + 0.001 * self.conv.weight.shape[0])
        return self.head(self.conv(x))


IMAGES = torch.zeros(1, 1, 2, 2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Where other work keeps the cores busy, threads wait for each other longer than the model takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def structure() -> infoprune.Structure:
    return infoprune.trace(Sleepy(), IMAGES)


def test_the_share_is_that_of_the_measured_times_and_measured_once(structure):
    net = Sleepy()
    state = copy.deepcopy(net.state_dict())
    measure = latency_share(net, structure, IMAGES, repeats=5)
    assert measure({"conv": 40}) == 1.0
    half = measure({"conv": 20})
    assert half == pytest.approx(30 / 50, rel=0.15)
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
    assert 12 <= widths["conv"] <= 22
    with pytest.raises(BudgetError, match=r"latency budget of 0.05 is below the floor of 0"):
        Uniform().widths(structure, budget=Budget("latency", 0.05), measure=measure)


def test_the_unpruned_model_counts_as_one():
    small = Sleepy(20)
    measure = latency_share(small, infoprune.trace(small, IMAGES), IMAGES, repeats=5, original=Sleepy(40))
    assert measure({"conv": 20}) == pytest.approx(30 / 50, rel=0.15)
    assert paired_ratio(Sleepy(20), Sleepy(40), IMAGES, repeats=5) == pytest.approx(30 / 50, rel=0.15)


def test_wrong_use_is_said(structure):
    with pytest.raises(ConfigurationError, match="repeats must be a whole number of at least 1, got 0"):
        latency_share(Sleepy(), structure, IMAGES, repeats=0)
    with pytest.raises(ConfigurationError, match="pass measure=latency_share"):
        Uniform().widths(structure, budget=Budget("latency", 0.5))
