"""Functions that remember tensors by `functools.lru_cache`: the same structure in every trace, exact cuts."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.structure.surgery.transaction import Transaction
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8)


def constant(width: int, device: Any) -> Tensor:
    return torch.full((1, width, 1, 1), 2.0, device=device)


@functools.lru_cache
def in_the_file(width: int, device: Any) -> Tensor:
    return constant(width, device)


@functools.lru_cache
def of_a_network(net: Scaled) -> Tensor:
    return constant(net.first.out_channels, net.first.weight.device)


@functools.cache
def settings() -> dict[str, float]:
    """Return the settings of the file: one dictionary, which others fill."""
    return {}


def unless_compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Remember results as transformers does: the cached function is in the closure of another."""
    cached = functools.lru_cache(function)

    @functools.wraps(function)
    def called(*args: Any) -> Tensor:
        return function(*args) if torch.compiler.is_compiling() else cached(*args)

    return called


class Scaled(nn.Module):
    """Multiplies channels by a table of their number, and adds a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def table(self, width: int, device: Any) -> Tensor:
        raise NotImplementedError

    @functools.lru_cache  # noqa: B019
    def places(self, high: int, wide: int, device: Any) -> Tensor:
        return torch.linspace(0, 1, high * wide, device=device).view(1, 1, high, wide)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = y * self.table(y.shape[1], y.device)
        y = self.second(y).relu()
        return self.head(y + self.places(*y.shape[2:], y.device)).mean((2, 3))


class OfTheClass(Scaled):
    @functools.lru_cache  # noqa: B019
    def table(self, width: int, device: Any) -> Tensor:
        return constant(width, device)


class OfAStaticMethod(Scaled):
    table = staticmethod(functools.lru_cache(constant))  # type: ignore[assignment]


class OfADecorator(Scaled):
    table = staticmethod(unless_compiled(constant))  # type: ignore[assignment]


class OfTheFile(Scaled):
    def table(self, width: int, device: Any) -> Tensor:
        return in_the_file(width, device)


class OfTheInstance(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.table = functools.lru_cache(constant)  # type: ignore[method-assign]


class OfTheFirst(Scaled):
    """Remembers a table for the width that its first layer has at the first call."""

    @functools.lru_cache  # noqa: B019
    def of_the_first(self, device: Any) -> Tensor:
        return constant(self.first.out_channels, device)

    def table(self, width: int, device: Any) -> Tensor:
        return self.of_the_first(device)


class OfANetwork(Scaled):
    """Asks a function of the file, which gets the network itself."""

    def table(self, width: int, device: Any) -> Tensor:
        return of_a_network(self)


class OfSettings(Scaled):
    def table(self, width: int, device: Any) -> Tensor:
        return constant(width, device) * settings()["scale"]


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("kind", [OfTheClass, OfAStaticMethod, OfADecorator, OfTheFile, OfTheInstance])
def test_every_trace_sees_the_table_being_made(kind: type[Scaled], called: bool) -> None:
    net = randomise(kind())
    if called:
        net(X)
    seen = [[group.name for group in infoprune.trace(net, X).prunable] for _ in range(3)]
    assert seen == [["first", "second"]] * 3
    original = copy.deepcopy(net)
    result = infoprune.prune(net, X, "l1", macs=0.5, round_to=1)
    assert relative_error(original, net, result.plan, X) < 1e-5


def test_a_trace_leaves_what_a_function_remembers() -> None:
    net = randomise(OfTheClass())
    net(X)
    before, table = OfTheClass.table.cache_info(), net.table(8, X.device)
    infoprune.trace(net, X)
    assert OfTheClass.table.cache_info().currsize == before.currsize
    assert net.table(8, X.device) is table


@pytest.mark.parametrize("kind", [OfTheFirst, OfANetwork])
def test_a_cut_lets_a_function_forget_a_table_for_the_old_width(kind: type[Scaled]) -> None:
    net = randomise(kind())
    expected = net(X)
    original = copy.deepcopy(net)
    result = infoprune.prune(net, X, "l1", macs=0.5, round_to=1)
    assert result.after.macs < result.before.macs
    assert relative_error(original, net, result.plan, X) < 1e-5
    assert net(X).shape == expected.shape


def test_an_object_that_a_function_without_arguments_keeps_for_all_stays() -> None:
    settings()["scale"] = 3.0
    net = randomise(OfSettings())
    original = copy.deepcopy(net)
    result = infoprune.prune(net, X, "l1", macs=0.5, round_to=1)
    assert relative_error(original, net, result.plan, X) < 1e-5
    assert settings() == {"scale": 3.0}


def test_labels_of_an_earlier_pass_are_not_those_of_a_later_one() -> None:
    tables: dict[Any, Tensor] = {}  # where no cache can be emptied

    class Net(Scaled):
        def table(self, width: int, device: Any) -> Tensor:
            return tables.setdefault((width, device), constant(width, device))

        def places(self, high: int, wide: int, device: Any) -> Tensor:  # type: ignore[override]
            if (high, wide, device) not in tables:
                tables[high, wide, device] = torch.linspace(0, 1, high * wide, device=device).view(1, 1, high, wide)
            return tables[high, wide, device]

    net = randomise(Net())
    for _ in range(3):
        original = copy.deepcopy(net)
        assert "second" in [group.name for group in infoprune.trace(net, X).prunable]
        result = infoprune.prune(net, X, "l1", filters=0.8, round_to=1)
        assert relative_error(original, net, result.plan, X) < 1e-5


@pytest.mark.parametrize("kind", [OfTheFirst, OfANetwork])
def test_a_cut_that_is_undone_lets_a_function_forget_a_table_for_the_cut_width(kind: type[Scaled]) -> None:
    net = randomise(kind())
    expected = net(X)
    plan = infoprune.trace(net, X).plan({"first": [0, 3]})
    with contextlib.suppress(MemoryError), Transaction([net]) as transaction:
        infoprune.shrink(net, plan, transaction=transaction)
        assert net(X).shape == expected.shape
        raise MemoryError
    assert torch.equal(net(X), expected)


def test_a_fit_cuts_a_network_whose_method_remembers_a_table() -> None:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = OfTheFirst()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    data = torch.utils.data.TensorDataset(torch.randn(32, 3, 8, 8), torch.randint(4, (32,)))
    module = Module()
    pruning = infoprune.FilterPruning(macs=0.5, schedule=[1, 2], round_to=1)
    options: dict[str, Any] = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
    trainer = lightning.Trainer(max_epochs=3, callbacks=[pruning], accelerator="cpu", **options)
    trainer.fit(module, torch.utils.data.DataLoader(data, 8))
    assert module.net.first.out_channels < 8
    assert module.net(X).shape == (2, 4)
