"""Models and example inputs that have no values, and example inputs that are no call of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

import infoprune
from infoprune import FilterPruning
from infoprune.errors import ConfigurationError, TraceError
from tests.tiny import TinyModule, TinyNet, loader, trainer

X = torch.zeros(1, 3, 8, 8)


def partly_meta(part: str) -> TinyNet:
    net = TinyNet()
    net.get_submodule(part).to("meta")
    return net


def fit(module: TinyModule, **options: Any) -> None:
    trainer(FilterPruning("l1", macs=0.5, schedule=[1], **options), epochs=2).fit(module, loader())


@pytest.mark.parametrize("part", ["", "norm", "head"])
@pytest.mark.parametrize("data", [None, [torch.rand(2, 3, 8, 8)]])
def test_a_model_without_values_is_refused_by_name(part: str, data: Any) -> None:
    net = partly_meta(part)
    with pytest.raises(ConfigurationError, match=f"{part}.* is on the meta device.*load"):
        infoprune.prune(net, X, "l1", macs=0.5, data=data)
    assert net.conv1.out_channels == 12


def test_a_model_that_is_on_the_meta_device_as_a_whole_is_traced_and_cut() -> None:
    net = TinyNet().to("meta")
    assert len(infoprune.trace(net, X).prunable) == 2
    infoprune.prune(net, X, "random", macs=0.5)
    assert net.conv1.weight.is_meta
    assert net.conv1.out_channels < 12


def test_inputs_without_values_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"example inputs are on the meta device.*torch\.zeros\(1, 3, 8, 8\)"):
        infoprune.prune(TinyNet(), X.to("meta"), "l1", macs=0.5)
    with pytest.raises(ConfigurationError, match="meta device"):
        infoprune.verify(TinyNet(), TinyNet(), infoprune.PruningPlan(), X.to("meta"))
    with pytest.raises(ConfigurationError, match="meta device"):
        fit(TinyModule(), example_inputs=X.to("meta"))


class Late(TinyModule):
    def __init__(self) -> None:
        super().__init__(net=nn.Identity())

    def configure_model(self) -> None:
        self.net = partly_meta("head")


@pytest.mark.parametrize(
    "make", [lambda: TinyModule(net=partly_meta("")), lambda: TinyModule(net=partly_meta("norm")), Late]
)
def test_a_fit_of_a_model_without_values_names_the_parameter(make: Callable[[], TinyModule]) -> None:
    with pytest.raises(ConfigurationError, match=r"net\..* is on the meta device.*to_empty"):
        fit(make())


@pytest.mark.parametrize(
    "make", [iter, lambda one: (x for x in one), lambda one: map(torch.relu, one), lambda _: loader()]
)
def test_iterators_and_loaders_are_no_example_inputs(make: Callable[[list[Any]], Iterable[Any]]) -> None:
    with pytest.raises(TraceError, match=r"what one call of the model receives, not a .*: give tensors"):
        infoprune.trace(TinyNet(), make([X]))
    with pytest.raises(TraceError, match="what one call of the model receives"):
        infoprune.trace(TinyNet(), infoprune.Examples(X, (make([X]),)))
    with pytest.raises(TraceError, match="what one call of the model receives"):
        fit(TinyModule(), example_inputs=make([X]))
