"""Fitting the layers behind a cut to their former outputs."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import infoprune
from infoprune.errors import ConfigurationError, DataError
from infoprune.models import CifarResNet
from infoprune.reconstruction import reconstruct
from tests import warm
from tests.tiny import same

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(reader: nn.Module) -> nn.Sequential:
    """A convolution whose last four filters are sums of the first four, and a layer that reads them."""
    torch.manual_seed(0)
    made = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        for tensor in (made.weight, made.bias):
            tensor[4:] = tensor[:4] + 2 * tensor[:4].flip(0)
    return nn.Sequential(made, *([nn.Flatten()] if isinstance(reader, nn.Linear) else []), reader)


def cut(net: nn.Sequential) -> nn.Module:
    """Remove the sums."""
    smaller = copy.deepcopy(net)
    structure = infoprune.trace(net, IMAGES[:1])
    infoprune.shrink(smaller, structure.plan({"0": [4, 5, 6, 7]}))
    return smaller


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(8, 4, 3),
        nn.Conv2d(8, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        nn.Conv2d(8, 4, 1, stride=2),
        nn.Linear(8 * 36, 5),
    ],
)
@pytest.mark.parametrize("sizes", [(48,), (7, 41)])
def test_what_the_rest_determines_comes_back_entirely(reader: nn.Module, sizes: tuple[int, ...]):
    net = network(reader)
    smaller = cut(net)
    with torch.no_grad():
        wanted = net(IMAGES)
        assert (smaller(IMAGES) - wanted).std() > 0.05
        reconstruct(smaller, net, IMAGES.split(sizes), ridge=1e-9)
        torch.testing.assert_close(smaller(IMAGES), wanted, rtol=1e-2, atol=2e-2)


def test_each_layer_is_fitted_to_what_the_layers_before_it_now_give():
    """Of two layers in a row the second sees the first one's error, and the result is nearer than without a fit."""
    torch.manual_seed(0)
    net = CifarResNet(depth=14)
    infoprune.recalibrate(net, [torch.randn(64, 3, 16, 16)])
    data = [torch.randn(32, 3, 16, 16) for _ in range(3)]
    errors = []
    for count in (0, 3):
        smaller = copy.deepcopy(net).eval()
        options: dict[str, Any] = {"recalibration_batches": 3, "reconstruction_batches": count}
        infoprune.prune(smaller, data[0][:1], "l1", filters=0.5, data=data, round_to=1, **options)
        with torch.no_grad():
            errors.append((smaller(data[0]) - net.eval()(data[0])).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


class Shared(nn.Module):
    """One head for two maps, whose second one is much larger."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3)
        self.head, self.other = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)
        if tied:
            self.other.weight = self.head.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        second = self.other if self.other.weight is self.head.weight else self.head
        return self.head(input=self.a(x).relu()), second(10 * self.b(x) + 3)


@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_that_is_called_twice_is_fitted_to_both(tied: bool):
    torch.manual_seed(0)
    net = Shared(tied)
    smaller = copy.deepcopy(net)
    infoprune.prune(smaller, IMAGES[:1], "l1", filters=0.5, round_to=1)
    weight, wanted = smaller.head.weight.clone(), net(IMAGES)
    before = [(now - then).square().mean() for now, then in zip(smaller(IMAGES), wanted, strict=True)]
    reconstruct(smaller, net, [IMAGES])
    after = [(now - then).square().mean() for now, then in zip(smaller(IMAGES), wanted, strict=True)]
    assert (sum(after) < 0.9 * sum(before)) == (not tied)
    assert torch.equal(weight, smaller.head.weight) == tied


class Residual(nn.Module):
    """A branch beside a shortcut that reads the same cut channels and cannot be fitted."""

    def __init__(self, norm: bool, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = network(nn.Conv2d(8, 4, 3))[0]
        self.shortcut, self.branch = nn.ConvTranspose2d(8, 6, 1), nn.Conv2d(8, 6, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.in_place = in_place
        if norm:
            nn.init.uniform_(self.norm.weight, -2, 2)
            nn.init.uniform_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.branch(x))
        if self.in_place:
            out += self.shortcut(x)
            return out
        return self.shortcut(x) + out


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_residual_branch_makes_up_for_the_shortcut(norm: bool, in_place: bool):
    net = Residual(norm, in_place)
    if norm:
        infoprune.recalibrate(net, [IMAGES])
    net.eval()
    smaller = copy.deepcopy(net)
    infoprune.shrink(smaller, infoprune.trace(net, IMAGES[:1]).plan({"stem": [4, 5, 6, 7]}))
    with torch.no_grad():
        wanted = net(IMAGES)
        assert (smaller(IMAGES) - wanted).std() > 0.3
        lengths = smaller.branch.weight.flatten(1).norm(dim=1)
        reconstruct(smaller, net, [IMAGES], ridge=1e-9)
        if norm:
            infoprune.recalibrate(smaller, [IMAGES])
            torch.testing.assert_close(smaller.branch.weight.flatten(1).norm(dim=1), lengths)
        torch.testing.assert_close(smaller(IMAGES), wanted, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("use", ["twice", "tied"])
def test_a_batch_norm_that_others_use_is_not_fitted(use: str):
    class Net(Residual):
        def forward(self, x: Tensor) -> Tensor:
            first = super().forward(x)
            return first + (self.norm if use == "twice" else self.other)(first)

    net = Net(True, False)
    net.other = nn.BatchNorm2d(6)
    net.other.weight = net.norm.weight
    infoprune.recalibrate(net, [IMAGES])
    net.eval()
    smaller = copy.deepcopy(net)
    infoprune.shrink(smaller, infoprune.trace(net, IMAGES[:1]).plan({"stem": [4, 5, 6, 7]}))
    reconstruct(smaller, net, [IMAGES])
    assert torch.equal(smaller.norm.weight, net.norm.weight)
    assert torch.equal(smaller.norm.bias, net.norm.bias)


def test_nothing_else_changes():
    net = network(nn.Conv2d(8, 4, 3))
    net.append(nn.Dropout()).train()
    smaller = cut(net).train()
    before, original = copy.deepcopy(smaller), copy.deepcopy(net)
    state = torch.get_rng_state()
    reconstruct(smaller, net, [IMAGES])
    assert torch.equal(torch.get_rng_state(), state)
    assert same(net, original)
    assert torch.equal(smaller[0].weight, before[0].weight)
    assert not torch.equal(smaller[1].weight, before[1].weight)
    assert smaller.training
    assert net.training
    assert smaller[1].weight.requires_grad
    again = copy.deepcopy(before)
    reconstruct(again, net, [IMAGES])
    assert same(again, smaller)


def test_layers_that_cannot_be_fitted_stay():
    """Grouped and transposed convolutions, and layers that the run does not use."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
            self.up, self.spare = nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(8, 4, 1)
            self.use_spare = True

        def forward(self, x: Tensor) -> Tensor:
            x = self.made(x)
            out = self.up(self.grouped(x)).mean((2, 3))
            return out + self.spare(x).mean((2, 3)) if self.use_spare else out

    net = Net()
    smaller = copy.deepcopy(net)
    infoprune.shrink(smaller, infoprune.trace(net, IMAGES[:1]).plan({"made": [0, 5]}))
    net.use_spare = smaller.use_spare = False
    before = copy.deepcopy(smaller)
    reconstruct(smaller, net, [IMAGES])
    assert same(smaller, before)


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        ([], {}, DataError, "the data hold no batch"),
        ([IMAGES * torch.nan], {}, DataError, "the inputs of 1 are not finite"),
        ([IMAGES], {"batches": 0}, ConfigurationError, "batches"),
        ([IMAGES], {"ridge": -1}, ConfigurationError, "ridge"),
        ([IMAGES], {"plan": infoprune.PruningPlan()}, ConfigurationError, "never cut"),
        (["images"], {}, DataError, "a batch must be a tensor"),
    ],
)
def test_bad_input_leaves_the_model(data: list, options: dict, error: type[Exception], words: str):
    net = network(nn.Conv2d(8, 4, 3))
    smaller = cut(net)
    before = copy.deepcopy(smaller)
    with pytest.raises(error, match=words):
        reconstruct(smaller, net, data, **options)
    assert same(smaller, before)


class TestPrune:
    """`infoprune.prune(reconstruction_batches=...)`."""

    def test_is_the_cut_then_the_fit_then_batch_norm(self):
        torch.manual_seed(0)
        net = CifarResNet(depth=8).eval()
        data, by_hand, optimizer = [torch.randn(16, 3, 16, 16)] * 2, copy.deepcopy(net), None
        original = copy.deepcopy(net)
        result = infoprune.prune(by_hand, data[0][:1], "l1", macs=0.5, data=data, reconstruction_batches=0)
        reconstruct(by_hand, original, data)
        infoprune.recalibrate(by_hand, data)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        again = infoprune.prune(
            net, data[0][:1], "l1", macs=0.5, data=data, reconstruction_batches=2, optimizers=optimizer
        )
        assert again.plan == result.plan
        assert same(net, by_hand)
        net(data[0]).sum().backward()
        optimizer.step()

    def test_auto_takes_as_many_images_as_help(self):
        net = network(nn.Conv2d(8, 4, 3))
        plain, fitted, automatic = (copy.deepcopy(net) for _ in range(3))
        infoprune.prune(plain, IMAGES[:1], "l1", filters=0.5, data=[IMAGES])
        infoprune.prune(fitted, IMAGES[:1], "l1", filters=0.5, data=[IMAGES], reconstruction_batches=1)
        infoprune.prune(automatic, IMAGES[:1], "l1", filters=0.5, data=[IMAGES], reconstruction_batches="auto")
        assert same(automatic, fitted)
        assert torch.equal(automatic[0].weight, plain[0].weight)
        assert not torch.equal(automatic[1].weight, plain[1].weight)

    def test_auto_leaves_the_weights_where_the_images_are_too_few(self, caplog: pytest.LogCaptureFixture):
        behind = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 4)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), *behind)
        plain, automatic = copy.deepcopy(net), copy.deepcopy(net)
        infoprune.prune(plain, IMAGES[:1], "l1", filters=0.5, data=[IMAGES[:1]])
        assert not caplog.messages
        infoprune.prune(automatic, IMAGES[:1], "l1", filters=0.5, data=[IMAGES[:1]], reconstruction_batches="auto")
        assert same(plain, automatic)
        assert "pass more images" in caplog.messages[-1]

    def test_bad_input_leaves_the_model(self):
        net = network(nn.Conv2d(8, 4, 3))
        before = copy.deepcopy(net)
        for data, count in itertools.product((None, iter([IMAGES])), (2, "auto")):
            with pytest.raises(ConfigurationError, match=f"reconstruction_batches={count}"):
                infoprune.prune(net, IMAGES[:1], "l1", filters=0.5, data=data, reconstruction_batches=count)
        with pytest.raises(ConfigurationError, match="recalibration_batches must be a whole number"):
            infoprune.prune(net, IMAGES[:1], "l1", filters=0.5, data=[IMAGES], recalibration_batches="auto")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="not finite"):
            infoprune.prune(net, IMAGES[:1], "l1", filters=0.5, data=[IMAGES * torch.nan], reconstruction_batches=1)
        assert same(net, before)


def reconstructed() -> nn.Module:
    """Cut a network that is the same in every process, and fit what is left."""
    torch.manual_seed(1)
    net = network(nn.Conv2d(8, 4, 3))
    smaller = cut(net)
    reconstruct(smaller, net, [IMAGES])
    return smaller


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    smaller = reconstructed()
    torch.save(smaller.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


class Routed(nn.Module):
    """A layer that only bright images pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        bright = x.sum(dim=1) > 0
        hidden = torch.where(
            bright[:, None], torch.zeros_like(hidden).index_put((bright,), self.branch(hidden[bright])), hidden
        )
        return self.last(hidden)


def route(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = Routed().eval()
    smaller, images = copy.deepcopy(net), torch.rand(32, 4)
    infoprune.prune(smaller, images, "l1", filters=0.5)
    reconstruct(smaller, net, [-images if rank else images])
    torch.save(smaller.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_whose_images_take_different_ways_end_with_the_same_weights(tmp_path: Path):
    warm.spawn(route, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Asking(nn.Sequential):
    """Look at parameters before they are used."""

    def forward(self, x: Tensor) -> Tensor:
        penalty = sum(p.square().sum() * 0 for p in self.parameters())
        return super().forward(x.to(self[1].weight.dtype).to(self[1].weight.device)) + penalty


def test_layers_whose_weights_are_looked_at_before_are_fitted():
    net = network(nn.Conv2d(8, 4, 3))
    asking = Asking(*net)
    smaller, wanted = cut(asking), cut(net)
    reconstruct(smaller, asking, [IMAGES])
    reconstruct(wanted, net, [IMAGES])
    torch.testing.assert_close(smaller[1].weight, wanted[1].weight)


def test_two_processes_end_with_the_same_weights(tmp_path: Path):
    warm.spawn(work, str(tmp_path))
    smaller = reconstructed()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in smaller.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
