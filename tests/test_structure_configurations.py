"""Sizes that code reads from dicts, named tuples and the configuration that all modules of a network share."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.errors import PlanError
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
Parts = collections.namedtuple("Parts", "count width")


@dataclasses.dataclass(frozen=True)
class Sizes:
    heads: int = 4
    head_size: int = 6
    width: int = 20


class Attention(nn.Module):
    """Reads its number of heads from the configuration of the whole network."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.heads * config.head_size)
        self.out = nn.Linear(config.heads * config.head_size, config.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.config.heads, self.config.head_size)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.config.heads * self.config.head_size))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()
        self.first, self.head = nn.Linear(5, self.config.width), nn.Linear(self.config.width, 3)
        self.blocks = nn.Sequential(Attention(self.config), Attention(self.config))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x)))


def test_modules_that_share_a_configuration_lose_heads_of_their_own(tmp_path: Path) -> None:
    net = randomise(Network())
    original, config = copy.deepcopy(net), net.config
    structure = infoprune.trace(net, X)
    plan = structure.plan({"blocks.0.qkv": [1, 2], "blocks.1.qkv": [3], "first": [0]})
    infoprune.shrink(net, plan)
    assert [block.config.heads for block in net.blocks] == [2, 3]
    assert net.config is config
    assert config == Sizes(), "the others' configuration stays as it was"
    assert relative_error(original, net, plan, X) < 1e-5
    infoprune.save(net, tmp_path / "net.pt")
    twin = infoprune.load(tmp_path / "net.pt", Network())
    assert torch.equal(twin.eval()(X), net.eval()(X))


class Halves(nn.Module):
    def __init__(self, held: Any, read: Callable[[Any], tuple[int, int]]) -> None:
        super().__init__()
        self.first, self.head, self.held, self.read = nn.Linear(5, 32), nn.Linear(32, 3), held, read

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(*x.shape[:2], *self.read(self.held)).mul(2).flatten(2))


HELD: dict[str, tuple[Any, Callable[[Any], tuple[int, int]]]] = {
    "dict": ({"width": 16, "name": "any"}, lambda held: (2, held["width"])),
    "namespace": (types.SimpleNamespace(width=16), lambda held: (2, held.width)),
    "named tuple": (Parts(2, 16), lambda held: (held.count, held.width)),
    "whole number of NumPy": (np.int64(16), lambda held: (2, held)),
    "list in a list": ([[32, 16], [3]], lambda held: (2, held[0][1])),
    "tuple in a tuple": (((32, 16), (3,)), lambda held: (2, held[0][1])),
    "list in a dict": ({"widths": [32, 16], "name": "any"}, lambda held: (2, held["widths"][1])),
    "namespaces in a list": ([types.SimpleNamespace(width=16)], lambda held: (2, held[0].width)),
    "named tuple in a namespace": (types.SimpleNamespace(parts=Parts(2, 16)), lambda held: (2, held.parts.width)),
    "deque": (collections.deque([32, 16], maxlen=2), lambda held: (2, held[1])),
}


@pytest.mark.parametrize("kind", HELD)
def test_a_size_follows_wherever_it_is_held(kind: str) -> None:
    held, read = HELD[kind]
    net = randomise(Halves(held, read))
    original = copy.deepcopy(net)
    structure = infoprune.trace(net, X)
    plan = structure.plan({"first": [0, 1, 2, 3]})
    infoprune.shrink(net, plan)
    assert type(net.held) is type(held)
    assert read(net.held) == (2, 12)
    assert read(held) == (2, 16), "others may hold the same object"
    assert relative_error(original, net, plan, X) < 1e-5
    infoprune.shrink(original, infoprune.PruningPlan.from_json(plan.to_json()))
    assert read(original.held) == (2, 12)


def test_sizes_of_a_split_are_found_in_a_list_of_lists() -> None:
    class Split(Halves):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self.first(x).split(self.held[1], dim=-1)
            return self.head(torch.cat([first.sin(), second.cos()], -1))

    net = randomise(Split([[3], [24, 8]], tuple))
    original, structure = copy.deepcopy(net), infoprune.trace(net, X)
    plan = structure.plan({group.name: [0, 1] for group in structure.prunable})
    infoprune.shrink(net, plan)
    assert sum(net.held[1]) == net.first.out_features < 32
    assert relative_error(original, net, plan, X) < 1e-5


def test_a_plan_for_another_configuration_is_refused() -> None:
    held, read = HELD["dict"]
    plan = infoprune.trace(Halves(held, read), X).plan({"first": [0]})
    for other in ({"width": 18}, {"widths": 16}, 16, [16], {"width": [16]}):
        net = Halves(other, read)
        with pytest.raises(PlanError, match=r"held\[width\]"):
            infoprune.shrink(net, plan)
        assert net.held == other


def test_a_plan_for_another_list_is_refused() -> None:
    held, read = HELD["list in a list"]
    plan = infoprune.trace(Halves(held, read), X).plan({"first": [0]})
    for other in ([[32, 18], [3]], [[32], [3]], [32, 16], [], 16):
        net = Halves(other, read)
        with pytest.raises(PlanError, match=r"held\[0\]\[1\]"):
            infoprune.shrink(net, plan)
        assert net.held == other


def test_hyperparameters_of_a_lightning_module_stay() -> None:
    class Module(pl.LightningModule):
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.first, self.head = nn.Linear(5, 2 * width), nn.Linear(2 * width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x).view(*x.shape[:2], 2, self.hparams.width).mul(2).flatten(2))

    module = Module()
    assert "its size is fixed" in str(infoprune.trace(module, X).group("first").reason)
    assert module.hparams.width == 16


class Checked(Parts):  # makes sure of what it holds
    def __new__(cls, count: int, width: int) -> Checked:
        assert width == 16
        return super().__new__(cls, count, width)


class Schedule:
    """An object that the whole project shares, of which no module may get a copy."""

    def __init__(self) -> None:
        self.width, self.handle = 16, object()


@pytest.mark.parametrize("held", [Checked(2, 16), Schedule()])
def test_a_size_in_an_object_that_is_more_than_settings_stays(held: Any) -> None:
    net = Halves(held, lambda held: (2, held.width))
    assert "its size is fixed" in str(infoprune.trace(net, X).group("first").reason)
    assert net.held is held
