"""Normalisations over channels, however they are spelled, and statistics that are none."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure import check_plan
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Norm(nn.Module):
    """A normalisation over channels with scale and shift, given as a function of maps."""

    over_kept = "weight"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.weight[:, None, None] + self.bias[:, None, None]


class Function(nn.Module):
    """A function of maps."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def channels_first(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)


def by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def rms_of_tokens(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2).to(torch.float32).to(x.dtype)
    tokens = tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6)
    return tokens.transpose(1, 2).view_as(x)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": channels_first,
    "var_mean": by_var_mean,
    "std": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5),
    "rms": rms_of_tokens,
    "functional rms": lambda x: F.rms_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
    "over channels and places": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
    "global response": lambda x: (
        x.norm(dim=(2, 3), keepdim=True) / x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True)
    ),
}
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt(),
    "pow": lambda x: x / (x.pow(2).sum(1, keepdim=True) + 1e-10).sqrt(),
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-10),
    "normalize": F.normalize,
    "1-norm": lambda x: F.normalize(x, p=1.0),
    "largest": lambda x: F.normalize(x, p=float("inf")),
    "cosine": lambda x: x * F.cosine_similarity(x, 2 * x, dim=1).unsqueeze(1),
}
STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "gate": (lambda x: x * x.mean(1, keepdim=True).sigmoid(), "mean over channels would change"),
    "centred": (lambda x: x - x.mean(1, keepdim=True), "mean over channels would change"),
    "times its mean": (lambda x: x * x.mean(1, keepdim=True), "mean over channels would change"),
    "smallest": (lambda x: x / (x.amin(1, keepdim=True) + 1e-6), "amin over channels would change"),
    "sigmoid over its sum": (
        lambda x: x.sigmoid() / x.sigmoid().sum(1, keepdim=True),
        "sum over channels would change",
    ),
    "constant added": (lambda x: x / (x.std(1, keepdim=True) + 1.0), "std over channels would change"),
    "whole number": (lambda x: x / x.shape[1], "a factor is computed from its width"),
    "mean by hand": (lambda x: x - x.sum(1, keepdim=True) / x.shape[1], "a factor is computed from its width"),
}


def network(norm: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), norm, nn.Conv2d(8, 4, 1)))


def cut(net: nn.Module) -> tuple[nn.Module, infoprune.PruningPlan]:
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    plan = structure.plan({"0": [0, 3, 6]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert infoprune.verify(original, net, plan, X).ok
    return original, plan


@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_a_normalisation_are_taken_over_what_stays(name: str) -> None:
    net = network(Norm(NORMS[name]))
    original, plan = cut(net)
    assert relative_error(original, net, plan, X) < 1e-12


def test_a_scale_may_come_before_the_division() -> None:
    class Scaled(Norm):
        def forward(self, x: Tensor) -> Tensor:
            scaled = self.weight[:, None, None] * (x - x.mean(1, keepdim=True))
            return scaled / (x.std(1, keepdim=True) + 1e-6) + self.bias[:, None, None]

    net = network(Scaled(lambda x: x))
    original, plan = cut(net)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_do_not_change_with_channels_that_are_zero(name: str) -> None:
    net = network(Function(LENGTHS[name]))
    original, plan = cut(net)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("name", STATISTICS)
def test_other_statistics_freeze_with_their_own_reason(name: str) -> None:
    function, reason = STATISTICS[name]
    assert reason in (infoprune.trace(network(Norm(function)), X).group("0").reason or "")


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_norms_of_tokens(norm: type[nn.Module]) -> None:
    class OfTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)

    net = network(OfTokens())
    cut(net)
    assert tuple(net[2].norm.normalized_shape) == (5,)


def test_a_group_norm_of_single_channels_goes_with_them() -> None:
    net = network(nn.GroupNorm(8, 8))
    original, plan = cut(net)
    assert (net[2].num_groups, net[2].num_channels) == (5, 5)
    assert relative_error(original, net, plan, X) < 1e-12


def test_a_statistic_that_nobody_reads_freezes_nothing() -> None:
    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x, x.mean(1) * 100)[0]

    net = network(Watched())
    original, plan = cut(net)
    assert relative_error(original, net, plan, X) < 1e-12


def test_a_statistic_that_is_an_output_freezes() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.b(y), y.mean(1)

    assert "mean over channels would change" in (infoprune.trace(Watched(), X).group("a").reason or "")


@pytest.mark.parametrize("shape", [(8,), [8], torch.Size([8])])
def test_a_size_in_a_tuple_or_list_follows(shape: object) -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shape = nn.Parameter(torch.ones(8)), shape

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x.movedim(1, -1), self.shape, self.weight).movedim(-1, 1)  # type: ignore[arg-type]

    net = network(Sized())
    cut(net)
    assert list(net[2].shape) == [5]
    assert type(net[2].shape) is type(shape)


class Shifted(nn.Module):
    """Normalises each map over space; of scale and shift, which all channels share, there may be either or none."""

    def __init__(self, scale: bool, shift: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(64, 4)
        self.scale = nn.Parameter(torch.rand(64)) if scale else None
        self.shift = nn.Parameter(torch.rand(64)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.layer_norm(self.first(x).flatten(2), (64,), self.scale, self.shift).sum(1))


@pytest.mark.parametrize(("scale", "shift"), [(False, True), (True, True), (True, False), (False, False)])
def test_a_shift_over_space_stays_behind_in_channels_that_go(scale: bool, shift: bool) -> None:
    assert infoprune.trace(Shifted(scale, shift), X).group("first").frozen == shift
