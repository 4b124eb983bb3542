"""Tensors that a model's code makes on the CPU and fills with what it computes are no constants."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import infoprune
from tests.networks import conv_bn, randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Chooses(nn.Module):
    """One of two heads, by what a tensor on the CPU holds after ``fill``."""

    def __init__(self, fill: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 8)
        self.head, self.other = nn.Linear(8, 5), nn.Linear(8, 5)
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        found = torch.zeros(2, 8, 8, dtype=x.dtype)
        self.fill(found, x[:, 0])
        return (self.head if found.abs().sum() > 0.5 else self.other)(y.mean((2, 3)))


def _set_items(found: Tensor, x: Tensor) -> None:
    places = torch.where(x > 0)
    found[places] = x[places]


def _add(found: Tensor, x: Tensor) -> None:
    found += x


def _read_list(found: Tensor, x: Tensor) -> None:
    found.view(2, 64).copy_(x.flatten(1))
    assert max(found.tolist()[0][0]) > 0


@pytest.mark.parametrize(
    "fill", [_set_items, _add, lambda found, x: torch.mul(x, 2, out=found), lambda found, x: found.copy_(x), _read_list]
)
def test_control_flow_reads_what_was_written(fill: Callable[[Tensor, Tensor], object]) -> None:
    net = randomise(Chooses(fill)).eval()
    with pytest.warns(UserWarning, match="^other: not reached"):
        structure = infoprune.trace(net, X)
    assert "stem.0" in {group.name for group in structure.prunable}
    original = copy.deepcopy(net)
    plan = structure.plan({group.name: range(group.size // 2) for group in structure.prunable})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


class ReadsUsed(Chooses):
    """Reads a result of a tensor on the CPU that has changed since."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        offset = torch.ones(1, dtype=x.dtype)
        used = x.mean() * 0 + offset
        offset -= 1
        return (self.head if used > 0.5 else self.other)(y.mean((2, 3)))


def test_control_flow_reads_what_was_computed_before_a_change() -> None:
    with pytest.warns(UserWarning, match="^other: not reached"):
        infoprune.trace(randomise(ReadsUsed(_add)), X)


class IntoOut(nn.Module):
    """The output is a tensor made on the CPU, which an operator writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros(2, 5, dtype=x.dtype)
        with torch.no_grad():
            torch.addmm(self.head.bias, self.stem(x).mean((2, 3)), self.head.weight.t(), out=made)
        return made


def test_channels_that_are_written_into_a_tensor_made_on_the_cpu_reach_the_output() -> None:
    structure = infoprune.trace(randomise(IntoOut()), X)
    assert [group.name for group in structure.prunable] == ["stem.0"]
    assert "reaches the model's output" in structure.explain("head")


class Masked(nn.Module):
    """A mask made on the CPU meets the features; its numbers are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(2, 1, 8, 8, dtype=x.dtype)
        mask[:, :, ::2] = x[:, :1, ::2].sigmoid()
        return self.head((self.stem(x) * (mask + 1)).mean((2, 3)))


def test_a_model_whose_code_reads_no_such_numbers_is_traced_on_shapes() -> None:
    structure = infoprune.trace(randomise(Masked()), X)
    assert structure.passes.on_shapes
    assert [group.name for group in structure.prunable] == ["stem.0"]
