"""Models, inputs, data and optimizers that are none, or that do not fit each other, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import infoprune
from infoprune.errors import ConfigurationError, SurgeryError, TraceError
from tests.bad_input import X, refused
from tests.bad_input import surroundings as surroundings
from tests.tiny import TinyNet, sgd

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("resnet18", X, ConfigurationError, r"must be a torch\.nn\.Module in Python, got a str"),
        (TinyNet(), None, TraceError, "example inputs of type NoneType in module 'stem'"),
        (TinyNet(), X.double(), TraceError, r"inputs are float64 and the model is float32: cast the inputs with \.to"),
        (TinyNet(), X.numpy(), TraceError, r"give tensors as inputs, as torch\.from_numpy\(array\), not ndarray"),
        (TinyNet(), (1, 3, 8, 8), TraceError, r"for an input of that shape give torch\.zeros\(1, 3, 8, 8\)"),
        (TinyNet(), {"y": X}, TraceError, "unexpected keyword argument 'y'"),
        (TinyNet(), (X, X), TraceError, "takes 2 positional arguments but 3 were given"),
        (TinyNet(), X.long(), TraceError, r"of shape \(1, 3, 8, 8\) in module 'stem'"),
    ],
)
def test_things_that_are_no_model_and_no_input(model: Any, inputs: Any, error: Any, message: str) -> None:
    with refused(error, message, *([model] if type(model) is TinyNet else [])):
        infoprune.prune(model, inputs, "l1", filters=0.5)


def test_a_traced_module_is_no_model() -> None:
    with refused(ConfigurationError, r"must be a torch\.nn\.Module in Python, got a TopLevelTracedModule"):
        infoprune.prune(torch.jit.trace(TinyNet(), X), X, "l1", filters=0.5)


def test_lazy_layers_that_have_not_seen_an_input() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 3, 1))
    with pytest.raises(TraceError, match=r"0\.weight is a lazy parameter without a shape yet; run the model once"):
        infoprune.prune(net, X, "l1", filters=0.5)
    assert isinstance(net[0], nn.LazyConv2d)


def test_calibration_batches_that_do_not_fit() -> None:
    net = TinyNet()
    with refused(infoprune.errors.DataError, r"failed on a batch of shape \(4, 1, 8, 8\) \(RuntimeError: .*", net):
        infoprune.prune(net, X, "hrank", filters=0.5, data=[torch.zeros(4, 1, 8, 8)])


def test_widths_that_allow_no_cut_are_warned_about() -> None:
    net = TinyNet()
    with pytest.warns(UserWarning, match="removes nothing with round_to=auto and min_width=99; lower"):
        assert infoprune.prune(net, X, "l1", filters=0.5, min_width=99).plan.is_empty


@pytest.mark.parametrize("given", ["alone", "twice", "empty"])
def test_optimizers_as_people_pass_them(given: str) -> None:
    """A single one, the same one twice, one without parameters: all of them may be."""
    net = TinyNet()
    optimizer = sgd(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    empty = torch.optim.SGD([{"params": []}], lr=0.1)
    infoprune.prune(
        net,
        X,
        "l1",
        filters=0.5,
        optimizers={"alone": optimizer, "twice": [optimizer, optimizer], "empty": [empty, optimizer]}[given],
    )
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    assert all(state["momentum_buffer"].shape == p.shape for p, state in optimizer.state.items())
    assert len(optimizer.state) == len(list(net.parameters()))


def test_optimizers_that_are_none_or_cannot_follow() -> None:
    net = TinyNet()
    schedule = torch.optim.lr_scheduler.StepLR(sgd(net.parameters()), 1)
    lbfgs = torch.optim.LBFGS(net.parameters())
    with refused(SurgeryError, "optimizers are to hold optimizers, got a StepLR", net):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=[schedule])  # type: ignore[list-item]
    with refused(SurgeryError, "LBFGS keeps flattened.*use SGD", (net, lbfgs)):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=lbfgs)


def test_costs_of_more_units_than_there_are() -> None:
    structure = infoprune.trace(TinyNet(), X)
    name, size = structure.prunable[0].name, structure.prunable[0].size
    with refused(ConfigurationError, f"group '{name}' has {size} units; its width cannot be {size + 1}"):
        structure.cost({name: size + 1})
