"""Options under their old names: they work as before, warn, and clash with the new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import infoprune
from infoprune import FilterPruning
from infoprune.errors import ConfigurationError
from tests.commands import NET, SHAPE, Shell
from tests.tiny import TinyModule, loader, trainer, widths

X = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 3))


def test_filters_are_kept_as_macs_are() -> None:
    few, same = net(), net()
    infoprune.prune(few, X, "l1", filters=0.1)
    infoprune.prune(same, X, "l1", filters="10%")
    assert few[0].out_channels == same[0].out_channels == 1
    assert infoprune.prune(net(), X, "l1", filters=1.0).plan.is_empty


def test_an_amount_removes_still_and_warns() -> None:
    old, new = net(), net()
    with pytest.warns(DeprecationWarning, match=r"amount=0\.7 \(to remove\) is now filters=0\.3 \(to keep\)") as seen:
        infoprune.prune(old, X, "l1", amount=0.7)
    assert seen[0].filename == __file__
    infoprune.prune(new, X, "l1", filters=0.3)
    assert infoprune.plan_of(old) == infoprune.plan_of(new)


def test_old_options_of_the_callback() -> None:
    with pytest.warns(DeprecationWarning, match=r"amount=0\.25 .* filters=0\.75"):
        callback = FilterPruning("l1", amount=0.25, schedule=1)
    assert callback.options["filters"] == 0.75
    with pytest.warns(DeprecationWarning, match="recalibrate is now called recalibration_batches"):
        callback = FilterPruning("l1", macs=0.5, schedule=1, recalibrate=2)
    assert callback.options["recalibration_batches"] == 2
    with pytest.warns(DeprecationWarning, match="copies is now called follow"):
        callback = FilterPruning("l1", macs=0.5, schedule=1, copies={"a": "b"})
    assert callback.options["follow"] == {"a": "b"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": 0.5, "amount": 0.5}, "filters=0.5 and amount=0.5 clash"),
        ({"macs": 0.5, "amount": 0.5}, "macs=0.5 and filters=0.5 clash"),
        ({"amount": 1.0}, r"amount must be in \[0, 1\)"),
        (
            {"macs": 0.5, "recalibration_batches": 1, "recalibrate": 2},
            "same option: give recalibration_batches",
        ),
    ],
)
def test_old_and_new_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        infoprune.prune(net(), X, "l1", **options)
    with pytest.raises(ConfigurationError, match=message):
        FilterPruning("l1", schedule=1, **options)


def test_the_old_option_of_the_command_line(shell: Shell) -> None:
    words = [*NET, *SHAPE, "--criterion", "l1", "--latency_repeats", "0"]
    assert shell("prune", *words, "--amount", "0.7", "--out", "old").code == 0
    assert shell("prune", *words, "--filters", "30%", "--out", "new").code == 0
    old, new = (json.loads(Path(folder, "record.json").read_text())["after"] for folder in ("old", "new"))
    assert (old["macs"], old["params"]) == (new["macs"], new["params"])


class TestFrozenModules:
    def test_a_module_stays_as_its_name_does(self) -> None:
        one, two = (nn.Sequential(net(), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)) for _ in range(2))
        infoprune.prune(one, X, "l1", filters=0.5, frozen=[one[0]])
        infoprune.prune(two, X, "l1", filters=0.5, frozen=["0"])
        assert infoprune.plan_of(one) == infoprune.plan_of(two)
        assert one[0][0].out_channels == 10
        assert one[1].out_channels == 4

    def test_in_a_fit(self) -> None:
        module = TinyModule()
        before = widths(module)
        callback = FilterPruning("l1", macs=0.7, schedule=1, round_to=1, frozen=[module.net.conv1])
        trainer(callback, epochs=2).fit(module, loader())
        assert callback.options["frozen"] == ["conv1"]
        assert module.net.conv1.out_channels == 12
        assert widths(module) != before

    def test_a_module_of_another_model_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="frozen holds a Conv2d that is not within Sequential"):
            infoprune.trace(net(), X, [nn.Conv2d(3, 3, 1)])
        with pytest.raises(ConfigurationError, match=r"patterns of their names such as 'layer1\.\*', got 3"):
            infoprune.trace(net(), X, [3])  # type: ignore[list-item]
