"""Places, counts and modes among the arguments of operators, which code may compute from a width."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from tests.networks import randomise
from tests.test_structure_read_widths import Read, X

BY_A_WIDTH: dict[str, Callable[[Tensor, int], Tensor]] = {
    "a part": lambda a, width: a[..., width // 4 : width // 4 + 3],
    "a place": lambda a, width: a.select(3, width // 4)[..., None],
    "a triangle": lambda a, width: a.tril(width // 4),
    "a border": lambda a, width: F.pad(a, (width // 4, 4 - width // 4)),
    "a rank": lambda a, width: a.kthvalue(width, 3, keepdim=True)[0],
    "an order": lambda a, width: torch.linalg.vector_norm(a, ord=width // 2, dim=3, keepdim=True),
    "a correction": lambda a, width: a * a.var(3, keepdim=True, correction=width // 4),
    "a divisor": lambda a, width: F.avg_pool2d(a, 3, 1, 1, divisor_override=width),
    "a flag": lambda a, width: F.interpolate(a, size=(9, 9), mode="bilinear", align_corners=width > 6),
    "a word": lambda a, width: F.gelu(a, approximate="tanh" if width > 6 else "none"),
    "a direction": lambda a, width: a.sort(dim=3, descending=width > 6)[0],
    "decimals": lambda a, width: a.round(decimals=width // 4),
    "turns": lambda a, width: a.rot90(width // 4, (2, 3)),
}


@pytest.mark.parametrize("follow", BY_A_WIDTH)
def test_an_argument_that_is_computed_from_a_width_keeps_it(follow: str) -> None:
    reason = infoprune.trace(randomise(Read(BY_A_WIDTH[follow])), X).group("first").reason
    assert reason is not None
    assert reason.startswith("an argument of an operator is computed from its width")


def test_arguments_that_do_not_depend_on_a_width_freeze_nothing() -> None:
    def follow(a: Tensor, width: int) -> Tensor:
        halves = F.gelu(a[:, : width // 2, 1:], approximate="tanh") + a[:, width // 2 :].select(2, 3)[:, :, None]
        return F.pad(halves.sort(dim=3, descending=True)[0].rot90(1, (2, 3)).repeat(1, 2, 1, 1), (1, 0, 0, 2))

    assert [group.name for group in infoprune.trace(randomise(Read(follow)), X).prunable] == ["first"]


class Turn(nn.Module):
    """Turns its map as often as its width says, or not at all."""

    def __init__(self, turns: bool) -> None:
        super().__init__()
        self.conv, self.out, self.turns = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), turns

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return x + self.out(y.rot90(y.shape[1] // 8, (2, 3)) if self.turns else y)


def test_only_the_width_that_an_argument_is_computed_from_stays() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), Turn(turns=True), *(Turn(turns=False) for _ in range(4)), nn.Conv2d(16, 4, 1)
    )
    frozen = [group.name for group in infoprune.trace(randomise(net), X).groups if group.frozen and group.size == 16]
    assert frozen == ["1.conv"]


@pytest.mark.parametrize("missing", [0.5, float("inf"), float("nan")])
def test_a_number_that_the_code_writes_freezes_nothing_whatever_it_is(missing: float) -> None:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 0, self.body(x), missing)

    assert not infoprune.trace(Depth(), torch.randn(1, 3, 8, 8)).group("body.0").frozen
