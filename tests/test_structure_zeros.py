"""Sums over channels are exact only where removed channels are zero: through views, arguments and broadcasts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.rules.zeros import values_at_removed
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Summed(nn.Module):
    """Sums what a function makes of two maps over their channels."""

    def __init__(self, mix: Callable[[Summed, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.scale, self.mixer = nn.Parameter(torch.ones(1)), nn.Linear(64, 64)
        self.head, self.mix = nn.Conv2d(1, 2, 1), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self, self.first(x), self.second(x)).sum(1, keepdim=True))


def through_views(net: Summed, a: Tensor, b: Tensor) -> Tensor:
    a.view(2, 8, 64).transpose(1, 2)[:, :9].exp_()
    return a


def into_a_buffer(net: Summed, a: Tensor, b: Tensor) -> Tensor:
    both = torch.zeros(2, 2 * a.shape[1], 8, 8, dtype=a.dtype, device=a.device)
    both[:, : a.shape[1]].copy_(a.relu())
    both[:, a.shape[1] :] = b.cos()
    return both


def through_data(net: Summed, a: Tensor, b: Tensor) -> Tensor:
    a.detach().add_(1)
    return a


NOT_ZERO: dict[str, Callable[[Summed, Tensor, Tensor], Tensor]] = {
    "bits of a zero": lambda net, a, b: ((-a.relu()).float().view(torch.int32) < 0).to(a) + 0 * b,
    "views": through_views,
    "buffer": into_a_buffer,
    "detached": through_data,
    "hardtanh": lambda net, a, b: F.hardtanh(a, 0.5, 2),
    "clamp": lambda net, a, b: a.clamp(min=0.1),
    "threshold": lambda net, a, b: F.threshold(a, 0.2, 0.7),
    "pad": lambda net, a, b: F.pad(a, (1, 0, 0, 1), value=0.3),
    "where": lambda net, a, b: torch.where(b > 0, a, torch.ones_like(b)),
    "masked_fill": lambda net, a, b: a.masked_fill(b > 0, 2.0),
    "a scale of one element": lambda net, a, b: a.sigmoid() * net.scale,
    "an outer product": lambda net, a, b: a.sigmoid().mean((2, 3))[:, :, None, None] * b.mean((2, 3))[:, None, :, None],
    "rows with a bias": lambda net, a, b: net.mixer(a.flatten(2)).unflatten(2, (8, 8)),
    "rows joined in space": lambda net, a, b: torch.cat([a, b.exp()], 2),
    "a stack": lambda net, a, b: torch.stack([a, b.exp()], 2).flatten(2, 3),
    "some examples": lambda net, a, b: torch.index_put(a, (torch.arange(2),), b.exp()),
    "scattered": lambda net, a, b: a.scatter(2, torch.zeros_like(a, dtype=torch.long), b.exp()),
    "scattered numbers": lambda net, a, b: a.scatter(3, torch.zeros_like(a, dtype=torch.long), 0.5),
    "rows by number": lambda net, a, b: a.index_copy(2, torch.tensor([1, 3]), b[:, :, :2].cos()),
    "gathered": lambda net, a, b: a.cos().gather(2, torch.zeros_like(a, dtype=torch.long)),
    "distances": lambda net, a, b: torch.cdist(a.flatten(2).mT.exp(), b.flatten(2).mT)[:, None],
    "another number where": lambda net, a, b: torch.where(b > 0, a, 0.5),
    "a group norm of others": lambda net, a, b: F.group_norm(a, 2),
    "normed alone, of others": lambda net, a, b: F.instance_norm(a.sigmoid() * b.cos()),
    "batches of products": lambda net, a, b: a.sigmoid() @ b.sigmoid(),
    "all above zero": lambda net, a, b: (a > 0).all(1, keepdim=True).to(a),
    "all of another": lambda net, a, b: (a.cos() == 0).logical_or(b > -1).all(1, keepdim=True).to(a),
}

ZERO: dict[str, Callable[[Summed, Tensor, Tensor], Tensor]] = {
    "hardtanh": lambda net, a, b: F.hardtanh(a, -0.5, 2),
    "clamp": lambda net, a, b: a.clamp(-1, 3),
    "threshold": lambda net, a, b: F.threshold(a, -0.2, 0.7),
    "pad": lambda net, a, b: F.pad(a, (1, 0, 0, 1)),
    "where": lambda net, a, b: torch.where(b > 0, a, torch.zeros_like(b)),
    "masked_fill": lambda net, a, b: a.masked_fill(b > 0, 0.0),
    "gate": lambda net, a, b: a * b.sigmoid(),
    "a quotient": lambda net, a, b: a / (1 + b.abs()),
    "zero where": lambda net, a, b: torch.where(b > 0, a, 0.0),
    "scattered": lambda net, a, b: a.scatter_add(2, torch.zeros_like(a, dtype=torch.long), b),
    "zeros by number": lambda net, a, b: a.index_fill(3, torch.tensor([0, 2]), 0.0),
    "some columns": lambda net, a, b: assigned(a, b),
    "gathered": lambda net, a, b: a.gather(2, torch.zeros(1, 1, 8, 8, dtype=torch.long).expand(2, a.shape[1], -1, -1)),
    "distances": lambda net, a, b: torch.cdist(a.flatten(2).mT, b.flatten(2).mT)[:, None],
    "a quarter turn": lambda net, a, b: torch.rot90(a, 3, (2, 3)) + torch.rot90(b, 1, (1, 2)).transpose(1, 2).flip(1),
    "sorted": lambda net, a, b: a.sort(2)[0] + b.cummax(3)[0] + b.median(3, keepdim=True)[0],
    "a triangle": lambda net, a, b: a.tril() + b.triu(1),
    "alone in a batch norm": lambda net, a, b: F.batch_norm(a, None, None, training=True) + F.instance_norm(b),
    "alone in a group norm": lambda net, a, b: F.group_norm(a, a.shape[1]) + F.layer_norm(b, (8, 8)),
    "pooled and back": lambda net, a, b: F.max_unpool2d(b[..., :4, :4], F.max_pool2d(a, 2, return_indices=True)[1], 2),
    "largest and smallest": lambda net, a, b: (a.max(3)[0] + b.min(3)[0] + torch.aminmax(a, dim=2)[1])[..., None],
    "deviations": lambda net, a, b: (
        a.std(3, keepdim=True) + b.var(3, keepdim=True) + torch.std_mean(a, 2, keepdim=True)[0]
    ),
    "sums of numbers": lambda net, a, b: a.nansum(3, keepdim=True) + b.prod(3, keepdim=True),
    "as other numbers": lambda net, a, b: a * (b.float().view(torch.int32) > 0),
    "all zero": lambda net, a, b: (a.relu() == 0).all(1, keepdim=True).to(a),
    "all finite": lambda net, a, b: a * torch.isfinite(a).all(),
    "all zero, flattened": lambda net, a, b: a * (1 + (a == 0).flatten().all()),
    "all zero, in another order": lambda net, a, b: a * (1 + (a == 0).permute(2, 1, 0, 3)[0].flatten(1).all(1).all()),
    "all of several": lambda net, a, b: a * (1 + torch.cat([a == 0, b == 0], 1).min()),
    "all of both": lambda net, a, b: ((a.relu() == 0) & (b <= 0)).all(1, keepdim=True).to(a),
    "how many": lambda net, a, b: (~(a.relu() == 0)).sum(1, keepdim=True).to(a),
    "in place": lambda net, a, b: a.flatten(2).tanh_().mul_(0.5).unflatten(2, (8, 8)),
}


def assigned(a: Tensor, b: Tensor) -> Tensor:
    a[:, :, [0, 2]] = b[:, :, :2]
    a[:, :, :, torch.tensor([1, 5])] = 0.0
    return a


def cut(mix: Callable[[Summed, Tensor, Tensor], Tensor]) -> tuple[float, int]:
    """The error of a cut and the filters that stay."""
    net = randomise(Summed(mix))
    original = copy.deepcopy(net)
    try:
        plan = infoprune.prune(net, X, "l1", filters=0.5, round_to=1).plan
    except infoprune.errors.InfopruneError:
        return 0.0, 8
    return relative_error(original, net, plan, X), net.first.out_channels


@pytest.mark.parametrize("mix", NOT_ZERO)
def test_what_is_not_zero_is_not_summed(mix: str) -> None:
    assert cut(NOT_ZERO[mix])[0] < 1e-8


@pytest.mark.parametrize("mix", ZERO)
def test_zeros_are_seen_through_what_keeps_them(mix: str) -> None:
    error, filters = cut(ZERO[mix])
    assert error < 1e-8
    assert filters == 4


@pytest.mark.parametrize(
    "mix",
    {
        "equal to an image": lambda net, a, b: (a.relu() == X[:, :1].to(a).relu()).to(a.dtype),
        "classes of rows": lambda net, a, b: F.one_hot(a.mean(2).argmax(2), 8)[..., None].to(a.dtype),
    }.values(),
)
def test_a_removed_channel_may_equal_a_zero_of_another_tensor(mix: Callable[[Summed, Tensor, Tensor], Tensor]) -> None:
    reason = infoprune.trace(randomise(Summed(mix)), X).group("first").reason
    assert reason is not None
    assert reason.startswith("sum over channels would change")


def test_what_is_written_into_truth_values_may_be_false_where_channels_are_removed() -> None:
    def overwritten(net: Summed, a: Tensor, b: Tensor) -> Tensor:
        finite = torch.isfinite(a)
        finite[:, :, 1:] &= b[:, :, 1:].abs() > 0
        return a * finite.all()

    reason = infoprune.trace(randomise(Summed(overwritten)), X).group("first").reason
    assert reason is not None
    assert reason.startswith("all over channels would change")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(2, 8)])
def test_a_norm_with_scale_and_shift_makes_zeros_of_anything(norm: nn.Module) -> None:
    class Normed(Summed):
        def __init__(self) -> None:
            super().__init__(lambda net, a, b: net.norm(a.exp()))
            self.norm = norm

    net = randomise(Normed())
    assert "first" in [group.name for group in infoprune.trace(net, X).prunable]
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", filters=0.5, round_to=1).plan
    assert relative_error(original, net, plan, X) < 1e-8


def test_marks_on_storages_go_with_the_trace() -> None:
    net = Summed(ZERO["gate"])
    infoprune.trace(net, X)
    assert not any(vars(parameter.untyped_storage()) for parameter in net.parameters())
    assert labels_of(net.head.weight).axes == (None,) * 4


@pytest.mark.parametrize(
    ("shift", "follows"),
    [
        (lambda width: 1, False),
        (lambda width: 2, False),
        (lambda width: 4, False),
        (lambda width: width // 2, True),
        (lambda width: -(width // 4), True),
        (lambda width: 3 * (width // 4), True),
    ],
)
def test_a_roll_by_a_number_is_no_roll_by_a_share(shift: Callable[[int], int], follows: bool) -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).tanh()
            return self.second(y.roll(shift(y.shape[1]), 1))

    net = randomise(Rolled())
    structure = infoprune.trace(net, torch.randn(5, 4))
    assert [group.name for group in structure.prunable] == (["first"] if follows else [])
    if follows:
        original, plan = copy.deepcopy(net), structure.plan({"first": [1]})
        infoprune.shrink(net, plan)
        assert relative_error(original, net, plan, torch.randn(5, 4)) < 1e-12


def test_an_operator_that_fails_on_a_few_numbers_keeps_nothing() -> None:
    labels = labels_of(X)
    labels.axes = (None, torch.arange(3).numpy(), None, None)
    made = values_at_removed("aten.mm", [X, X], {}, [X, X], [labels, labels], labels.axes)
    assert made == [(labels.axes[1], frozenset())]
