"""Tables that code makes once and keeps outside of its modules; inputs of other classes; inference mode."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import InfopruneError
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def made(length: int, device: torch.device | None) -> Tensor:
    return torch.linspace(-1, 1, length, device=device)[:, None]


def in_a_dict() -> Callable[..., Tensor]:
    tables: dict[Any, Tensor] = {}

    def table(length: int, device: torch.device | None) -> Tensor:
        if length not in tables:
            tables[length] = made(length, device)
        return tables[length]

    return table


def in_an_lru_cache() -> Callable[..., Tensor]:
    return functools.lru_cache(made)


class Grid:
    """Is no module (anchor generators)."""

    def __init__(self) -> None:
        self.tables: dict[Any, Tensor] = {}

    def __call__(self, length: int, device: torch.device | None) -> Tensor:
        if length not in self.tables:
            self.tables[length] = made(length, device)
        return self.tables[length]


class Placed(nn.Module):
    def __init__(self, table: Callable[..., Tensor], on_device: bool) -> None:
        super().__init__()
        self.first, self.head, self.table, self.on_device = nn.Linear(4, 8), nn.Linear(8, 3), table, on_device

    def forward(self, x: Tensor) -> Tensor:
        places = self.table(x.shape[1], x.device if self.on_device else None)
        return self.head(torch.relu(self.first(x)) * places)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("keep", [in_a_dict, in_an_lru_cache, Grid])
def test_a_table_that_the_first_run_makes_is_what_any_run_would_make(keep: Any, on_device: bool) -> None:
    table = keep()
    net = randomise(Placed(table, on_device))
    original = copy.deepcopy(net)
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["first"]
    assert torch.equal(table(6, X.device if on_device else None), made(6, None))
    plan = structure.plan({"first": [0, 5]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-5
    assert net(X).shape == Placed(table, on_device)(X).shape, "another model on the same table runs, too"


def test_a_table_as_wide_as_a_layer_has_numbers_after_each_run() -> None:
    table = Grid()

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.head(y) * table(y.shape[2], x.device).square().mean()

    infoprune.trace(randomise(Wide()), X)
    assert len(table.tables) > 1, "plans with fewer channels were run dry"
    assert not any(kept.is_meta for kept in table.tables.values())


@pytest.mark.parametrize("use", [lambda table: table[3], lambda table: float(table[3]), lambda table: table.T[:, :6]])
def test_a_table_of_which_a_view_was_taken_has_numbers_too(use: Callable[[Tensor], Any]) -> None:
    table = Grid()

    class Net(Placed):
        def forward(self, x: Tensor) -> Tensor:
            places = use(table(x.shape[1], x.device))
            return self.head(torch.relu(self.first(x)) * (places.sum() if isinstance(places, Tensor) else places))

    net = randomise(Net(table, True))
    assert [group.name for group in infoprune.trace(net, X).prunable] == ["first"]
    assert net(X).isfinite().all()


class Marked(torch.Tensor):
    """A tensor of another class, which its results have too (MONAI, fastai)."""


def test_inputs_of_another_class_are_traced_as_plain_tensors() -> None:
    net = randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    x, original = X.as_subclass(Marked), copy.deepcopy(net)
    assert [group.name for group in infoprune.trace(net, x).prunable] == ["0"]
    plan = infoprune.prune(net, x, "l1", filters=0.5).plan
    assert net(x).shape == (2, 6, 3)
    assert infoprune.verify(original, net, plan, x).ok


class Marking(nn.Sequential):
    """Layers, one of whose results is turned into a tensor of another class."""

    def __init__(self, place: int, turned: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self.place, self.turned = place, turned

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self):
            x = layer(x)
            x = self.turned(x) if number == self.place else x
        return x


@pytest.mark.parametrize("turned", [lambda x: x.as_subclass(Marked), lambda x: nn.Parameter(x, requires_grad=False)])
@pytest.mark.parametrize(("place", "x"), [(0, X), (0, X[0]), (1, X[0]), (2, X), (2, X[0]), (4, X)])
def test_results_in_another_class_keep_their_channels(
    place: int, x: Tensor, turned: Callable[[Tensor], Tensor]
) -> None:
    net = randomise(Marking(place, turned))
    original = copy.deepcopy(net)
    reasons = {group.name: group.reason for group in infoprune.trace(net, x).groups}
    assert (reasons["0"], reasons["2"], reasons["4"]) == (None, None, "reaches the model's output")
    plan = infoprune.prune(net, x, "l1", filters=0.5).plan
    assert infoprune.verify(original, net, plan, x).ok


class Keeping(Marking):
    """Keeps what it turns into another class, or what is computed from it."""

    def __init__(self, place: int, turned: Callable[[Tensor], Tensor], kept: int) -> None:
        super().__init__(place, turned)
        self.number = kept
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept = []
        for number, layer in enumerate(self):
            x = layer(self.turned(x) if number == self.place else x)
            if number == self.number:
                self.kept = [x, self.turned(x)]
        return x


@pytest.mark.parametrize("turned", [lambda x: x.as_subclass(Marked), lambda x: x[:, 1:].as_subclass(Marked)])
@pytest.mark.parametrize("place", [0, 2])
def test_results_that_are_kept_stay_whatever_class_they_have(place: int, turned: Callable[[Tensor], Tensor]) -> None:
    reasons = {group.name: group.reason for group in infoprune.trace(randomise(Keeping(place, turned, 2)), X).groups}
    assert reasons["0"] is None
    assert reasons["2"] == "is kept after the forward pass, in kept"


def test_an_operand_in_another_class_that_is_kept_stays() -> None:
    class Holding(Marking):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = self[0](x)[:, 1:].as_subclass(Marked)
            return self[4](self[2](self.kept.relu()))

    reasons = {group.name: group.reason for group in infoprune.trace(randomise(Holding(0, Tensor.relu)), X).groups}
    assert reasons["0"] == "is kept after the forward pass, in kept"
    assert reasons["2"] is None


def test_another_class_behind_a_view_freezes_nothing() -> None:
    net = randomise(Marking(0, lambda x: [x.flatten(1), x.as_subclass(Marked)][1]))
    assert [group.name for group in infoprune.trace(net, X).prunable] == ["0", "2"]


@pytest.mark.parametrize("on_numbers", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_a_result_that_is_kept_as_a_parameter_stays(on_numbers: bool, used: bool) -> None:
    class Storing(Marking):
        def forward(self, x: Tensor) -> Tensor:
            features = self[0](x).relu()
            _ = x.numpy() if on_numbers else None  # which runs on numbers alone
            self.stored = nn.Parameter(features, requires_grad=False)
            return self[4](self[2](self.stored if used else features).relu())

    structure = infoprune.trace(randomise(Storing(0, Tensor.relu)), X)
    reasons = {group.name: group.reason for group in structure.groups}
    assert structure.passes.on_shapes != on_numbers
    assert reasons["0"] == "is kept after the forward pass, in stored"
    assert reasons["2"] is None


def test_a_pass_within_a_pass_leaves_pytorch_as_it_was() -> None:
    class Tracing(Marking):
        def forward(self, x: Tensor) -> Tensor:
            infoprune.trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
            return super().forward(x)

    with suppress(InfopruneError):
        infoprune.trace(Tracing(0, nn.Parameter), X)
    assert not {"as_subclass", "_make_subclass"} & vars(Tensor).keys()


def test_inference_mode_is_left_for_a_trace_and_a_cut() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    with torch.inference_mode():
        x = torch.randn(1, 3, 8, 8)
        infoprune.prune(net, x, "l1", filters=0.5)
    assert net[0].out_channels == 4
    net(torch.randn(1, 3, 8, 8)).sum().backward()
    assert net[0].weight.grad is not None


def test_a_forward_in_inference_mode_is_followed() -> None:
    class Predicting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool, self.body = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 6, 1)
            self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.body(self.pool(self.stem(x).relu()))).flatten(2).mean(2))

    net, x = randomise(Predicting()), torch.randn(2, 3, 8, 8)
    original, structure = copy.deepcopy(net), infoprune.trace(net, x)
    assert structure.passes.on_shapes
    assert [group.name for group in structure.prunable] == ["stem", "body"]
    plan = infoprune.prune(net, x, "l1", filters=0.5).plan
    assert infoprune.verify(original, net, plan, x).ok
