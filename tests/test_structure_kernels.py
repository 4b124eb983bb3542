"""Kernels that are no single parameter: masked, normalised, merged, modulated, or kept as buffers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import infoprune
from infoprune.criteria import get_criterion
from infoprune.structure import check_plan
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def counted(net: nn.Module, x: Tensor) -> float:
    """Multiply-accumulates for one example, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() / 2 / len(x)


class Standardised(nn.Conv2d):
    over_kept = "weight"

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, padding=1)

    def kernel(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(variance + 1e-6)


class StandardisedInSteps(Standardised):
    def kernel(self) -> Tensor:
        centred = self.weight - self.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        return centred / (centred.view(len(centred), -1).std(1).view(-1, 1, 1, 1) + 1e-5).expand_as(centred)


class StandardisedByBatchNorm(Standardised):
    def __init__(self, reads: int, makes: int, size: int) -> None:
        super().__init__(reads, makes, size)
        self.gain = nn.Parameter(torch.ones(makes, 1, 1, 1))

    def kernel(self) -> Tensor:
        rows = self.weight.reshape(1, len(self.weight), -1)
        scale = (self.gain * 0.25).view(-1)
        return F.batch_norm(rows, None, None, weight=scale, training=True, eps=1e-6).reshape_as(self.weight)


class Adapted(nn.Module):
    """A convolution and a low-rank adapter, merged in each call."""

    def __init__(self, reads: int, makes: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reads, makes, size)
        self.down, self.up = nn.Parameter(torch.randn(3, reads * size**2)), nn.Parameter(torch.randn(makes, 3))

    def forward(self, x: Tensor) -> Tensor:
        merged = self.conv.weight + 0.5 * (self.up @ self.down).view_as(self.conv.weight)
        return F.conv2d(x, merged, self.conv.bias, padding=1)


class Branches(nn.Module):
    """A 3x3, and a 1x1 followed by a 3x3, merged into one kernel."""

    def __init__(self, reads: int, makes: int, size: int) -> None:
        super().__init__()
        self.single = nn.Conv2d(reads, makes, size, bias=False)
        self.point, self.behind = nn.Conv2d(reads, 10, 1, bias=False), nn.Conv2d(10, makes, size, bias=False)
        self.norm = nn.BatchNorm2d(makes)

    def forward(self, x: Tensor) -> Tensor:
        deviation = (self.norm.running_var + self.norm.eps).sqrt()  # type: ignore[operator]
        scale = (self.norm.weight / deviation).reshape(-1, 1, 1, 1)
        kernel = self.single.weight * scale + F.conv2d(self.behind.weight, self.point.weight.permute(1, 0, 2, 3))
        return F.conv2d(x, kernel, self.norm.bias, padding=1)


class Modulated(nn.Module):
    """A kernel for each example, scaled by a style and normalised (StyleGAN 2)."""

    def __init__(self, reads: int, makes: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, makes, reads, size, size))
        self.style = nn.Linear(5, reads)
        self.register_buffer("latent", torch.randn(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        style = self.style(self.latent.expand(b, 5))  # type: ignore[operator]
        kernel = self.weight * style.view(b, 1, c, 1, 1)
        kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, b * c, h, w), kernel.view(-1, *kernel.shape[2:]), padding=1, groups=b)
        return y.view(b, -1, h, w)


def plain(reads: int, makes: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(reads, makes, size, padding=1)


def old(name: str) -> Callable[..., nn.Module]:
    def make(reads: int, makes: int, size: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            made: nn.Module = getattr(nn.utils, name)(plain(reads, makes, size))
        return made

    return make


KERNELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mask": lambda *sizes: prune.l1_unstructured(plain(*sizes), "weight", 0.3),
    "masked filters and bias": lambda *sizes: prune.random_unstructured(
        prune.ln_structured(plain(*sizes), "weight", 0.25, n=2, dim=0), "bias", 0.5
    ),
    "standardised": Standardised,
    "standardised in steps": StandardisedInSteps,
    "standardised by batch norm": StandardisedByBatchNorm,
    "weight norm": lambda *sizes: parametrizations.weight_norm(plain(*sizes)),
    "weight norm of old": old("weight_norm"),
    "spectral norm": lambda *sizes: parametrizations.spectral_norm(plain(*sizes)),
    "spectral norm of old": old("spectral_norm"),
    "low-rank adapter": Adapted,
    "merged branches": Branches,
    "modulated": Modulated,
}


@pytest.fixture(params=KERNELS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    made = KERNELS[request.param](6, 8, 3)
    whole = nn.Sequential(plain(3, 6, 3), nn.ReLU(), made, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    for module in (whole[0], whole[4]):
        randomise(module)
    with torch.no_grad():
        whole(X)
    return whole


def test_it_is_pruned_and_counted_like_any_other_layer(net: nn.Module) -> None:
    structure = infoprune.trace(net, X)
    assert structure.cost().macs == pytest.approx(counted(net, X), abs=0.51)
    assert {group.size for group in structure.prunable} == {6, 8}
    makers = [layer.name for group in structure.prunable for layer, _ in structure.producers(group)]
    assert makers[0] == "0"
    assert all(name.startswith("2") for name in makers[1:])
    plan = structure.plan({group.name: [0, 3, 4] for group in structure.prunable})
    check_plan(net, X, structure, plan)
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    assert structure.cost_of(plan).macs == pytest.approx(counted(net, X), abs=0.51)
    assert infoprune.verify(original, net, plan, X).ok
    assert torch.isfinite(net(X)).all()
    with torch.no_grad():
        again = infoprune.prune(net, X, "l1", filters=0.5)
    assert again.after.macs == pytest.approx(counted(net, X), abs=0.51)


@pytest.mark.parametrize("kind", ["standardised", "standardised in steps", "standardised by batch norm"])
def test_statistics_of_a_kernel_are_taken_over_what_stays(kind: str) -> None:
    net = randomise(nn.Sequential(plain(3, 6, 3), nn.ReLU(), KERNELS[kind](6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    original, structure = copy.deepcopy(net), infoprune.trace(net, X)
    plan = structure.plan({"0": [1, 2], "2": [0, 5, 6]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("kind", ["mask", "weight norm", "spectral norm", "spectral norm of old"])
def test_what_is_removed_adds_nothing_to_the_kernel(kind: str) -> None:
    """Where the kernel is the same as before, entry by entry, no definition is needed."""
    net = nn.Sequential(plain(3, 6, 3), nn.ReLU(), KERNELS[kind](6, 8, 3)).eval()
    with torch.no_grad():
        net(X)
    kernels = []
    for removed in ([], [1, 4]):
        cut = copy.deepcopy(net)
        for tensor in [*cut[2].parameters(), *cut[2].buffers()]:
            if tensor.dim() == 4 and tensor.shape[1] == 6:
                tensor.data[:, [1, 4]] = 0
            elif tensor.shape == (6 * 9,):
                tensor.data.view(6, 9)[[1, 4]] = 0
        if removed:
            infoprune.shrink(cut, infoprune.trace(cut, X).plan({"0": removed}))
        with torch.no_grad():
            cut(X)
        kernels.append(cut[2].weight.detach())
    assert torch.allclose(kernels[0][:, [0, 2, 3, 5]], kernels[1], atol=1e-6)


def test_a_centred_kernel_is_frozen_with_the_reason() -> None:
    class Centred(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    structure = infoprune.trace(nn.Sequential(plain(3, 6, 3), Centred(6, 8, 3), nn.Conv2d(8, 4, 1)), X)
    assert "mean over channels would change (mean in 1)" in (structure.group("0").reason or "")
    assert not structure.group("1").frozen


@pytest.mark.parametrize("criterion", ["random", "l2", "geometric_median", "capacity_independence", "hrank", "taylor"])
def test_every_criterion_prunes_around_a_kernel_that_is_a_buffer(criterion: str) -> None:
    class Sobel(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.register_buffer(
                "edges", torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).repeat(channels, 1, 1, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.edges, padding=1, groups=x.shape[1])  # type: ignore[arg-type]

    net = nn.Sequential(plain(3, 6, 3), Sobel(6), nn.ReLU(), plain(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 4))
    original, before = copy.deepcopy(net), counted(net, X)
    assert infoprune.trace(net, X).cost().macs == pytest.approx(before, abs=0.51)
    data = [(X, torch.tensor([0, 3]))]
    result = infoprune.prune(net, X, criterion, filters=0.5, data=data, reconstruction_batches=0)
    assert infoprune.verify(original, net, result.plan, X).ok
    assert net[1].edges.shape[0] == net[0].out_channels == 3


@pytest.mark.parametrize("criterion", ["taylor", "hrank", "chip"])
@pytest.mark.parametrize("kind", ["mask", "standardised", "weight norm", "weight norm of old"])
def test_criteria_with_data_observe_layers_with_computed_kernels(criterion: str, kind: str) -> None:
    net = nn.Sequential(plain(3, 6, 3), nn.ReLU(), KERNELS[kind](6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net.extend([nn.Flatten(), nn.Linear(8, 4)])
    structure = infoprune.trace(net, X)
    scores = get_criterion(criterion)(net, structure, [(X, torch.tensor([0, 3]))])
    assert {name: len(values) for name, values in scores.items()} == {"0": 6, "2": 8}


def test_a_loss_that_does_not_fit_the_targets_is_named() -> None:
    net = nn.Sequential(plain(3, 6, 3), nn.ReLU(), plain(6, 8, 3))
    with pytest.raises(
        infoprune.errors.ConfigurationError, match=r"cross_entropy fails on outputs of shape \(2, 8, 8, 8\)"
    ):
        infoprune.prune(net, X, "taylor", filters=0.5, data=[(X, torch.tensor([0, 3]))])


class Gaussian(nn.Module):
    """Blurs each channel as much as a number of its own says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.linspace(0.5, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(-1, 2, device=x.device, dtype=x.dtype)
        line = torch.exp(-(places**2) / (2 * self.sigma[:, None] ** 2 + 0.1))
        kernel = (line[:, :, None] * line[:, None])[:, None]
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("criterion", ["l1", "geometric_median", "capacity_independence"])
def test_a_kernel_may_be_computed_from_one_number_a_filter(criterion: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Gaussian(8), nn.Conv2d(8, 9, 1)))
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, x, criterion, filters=0.5, round_to=1).plan
    assert len(net[2].sigma) == 4
    assert infoprune.verify(original, net, plan, x).ok


class Composed(nn.Module):
    """A convolution whose kernel is the product of two small matrices."""

    def __init__(self, shape: Callable[[Composed, Tensor], tuple[int, ...]], makes: int) -> None:
        super().__init__()
        self.left, self.right, self.shape = (
            nn.Parameter(torch.randn(makes, 2)),
            nn.Parameter(torch.randn(2, 144)),
            shape,
        )
        self.makes, self.reads, self.size = makes, 16, 3

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.left @ self.right).view(self.shape(self, x)), padding=1)


def composed(shape: Callable[[Composed, Tensor], tuple[int, ...]], makes: int) -> nn.Module:
    return randomise(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Composed(shape, makes), nn.Conv2d(makes, 4, 1)))


@pytest.mark.parametrize(
    "shape",
    [
        lambda net, x: (12, -1, 3, 3),
        lambda net, x: (-1, x.shape[1], 3, 3),
        lambda net, x: (net.makes, net.reads, net.size, net.size),
    ],
)
def test_a_kernel_composed_of_small_factors_loses_what_it_reads(shape: Callable[..., tuple[int, ...]]) -> None:
    net = composed(shape, makes=12)
    original, structure = copy.deepcopy(net), infoprune.trace(net, X)
    plan = structure.plan({"0": [1, 2, 5]})
    infoprune.shrink(net, plan)
    assert net[2].right.shape == (2, 117)
    assert relative_error(original, net, plan, X) < 1e-12


def test_a_size_that_is_written_out_is_the_reason_whatever_other_ways_were_tried() -> None:
    reason = infoprune.trace(composed(lambda net, x: (16, 16, 3, 3), makes=16), X).group("0").reason
    assert str(reason).startswith("its size is fixed in the model's code (view")
