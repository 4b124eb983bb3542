"""Operators beside convolutions and products: each is cut exactly, or what it touches stays for a true reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

import infoprune
from infoprune.structure import check_plan
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A stem of eight channels, a function of them and of a layer, a head."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module, made: int = 8) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Conv2d(made, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.layer, self.stem(x).relu()))


def halved(net: nn.Module) -> nn.Module:
    """Cut every group in two and check that by an independent masked copy in float64."""
    net = randomise(net)
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", amount=0.5, round_to=1).plan
    assert relative_error(original, net, plan, X) < 1e-12
    return net


class Deformed(nn.Module):
    def __init__(self, shared: int) -> None:
        super().__init__()
        self.offset, self.deform = nn.Conv2d(8, 18 * shared, 1), DeformConv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deform(x, self.offset(x))


def test_a_deformable_convolution_of_single_channels_loses_them() -> None:
    class Alone(Deformed):
        def __init__(self) -> None:
            super().__init__(1)
            self.deform = DeformConv2d(8, 8, 3, padding=1, groups=8)

    net = halved(Around(lambda layer, x: layer(x), Alone()))
    assert (net.stem.out_channels, net.layer.deform.groups) == (4, 4)


@pytest.mark.parametrize("shared", [1, 2])
def test_deformable_convolutions_lose_filters_and_inputs_but_no_offsets(shared: int) -> None:
    net = halved(Around(lambda layer, x: layer(x), Deformed(shared), 12))
    deform = net.layer.deform
    assert (net.stem.out_channels, deform.in_channels, deform.out_channels) == (4, 4, 6)
    assert net.layer.offset.out_channels == 18 * shared


def test_bilinear_layers_lose_what_they_make_and_read() -> None:
    net = halved(Around(lambda layer, x: layer(x.mean((2, 3)), x.amax((2, 3)))[..., None, None], nn.Bilinear(8, 8, 8)))
    assert (net.stem.out_channels, net.head.in_channels) == (4, 4)
    assert net.layer.weight.shape == (4, 4, 4)
    assert (net.layer.in1_features, net.layer.in2_features, net.layer.out_features) == (4, 4, 4)


def test_a_bilinear_layer_of_what_is_not_zero_where_removed_is_exact() -> None:
    def squashed(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.mean((2, 3)).sigmoid(), x.amax((2, 3)).cos())[..., None, None]

    net = halved(Around(squashed, nn.Bilinear(8, 8, 8)))
    assert net.head.in_channels == net.layer.out_features == 4


ON_LISTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one scalar": lambda layer, x: sum(torch._foreach_mul([x, layer(x)], 0.5)),
    "a scalar each": lambda layer, x: sum(torch._foreach_add([x, layer(x)], [0.5, 2.0])),
    "two lists": lambda layer, x: torch._foreach_add([x.sigmoid()], [layer(x)], alpha=0.3)[0],
    "a weight": lambda layer, x: torch._foreach_lerp([x], [layer(x)], 0.1)[0],
    "three lists": lambda layer, x: torch._foreach_addcmul([x], [layer(x)], [x.sin()], 0.7)[0],
    "powers": lambda layer, x: torch._foreach_pow(2.0, [layer(x).sin()])[0],
    "in place": lambda layer, x: written(torch._foreach_mul_, [layer(x), x.cos()], 3.0),
    "copied": lambda layer, x: written(torch._foreach_copy_, [torch.zeros_like(x), x.cos()], [layer(x), x.sin()]),
}


def written(function: Callable[..., object], tensors: list[Tensor], *rest: object) -> Tensor:
    function(tensors, *rest)
    return tensors[0] - tensors[1]


@pytest.mark.parametrize("name", ON_LISTS)
def test_operators_on_lists_of_tensors(name: str) -> None:
    net = halved(Around(ON_LISTS[name], nn.Conv2d(8, 8, 3, padding=1)))
    assert net.stem.out_channels == net.layer.out_channels == net.head.in_channels == 4


WINDOWS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "as a convolution": lambda layer, x: (layer.weight.flatten(1) @ F.unfold(x, 3, padding=1)).view(2, -1, 8, 8),
    "back again": lambda layer, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "a mean": lambda layer, x: F.unfold(x, 3, padding=1).view(2, x.shape[1], 9, 8, 8).mean(2),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_as_columns(name: str) -> None:
    assert halved(Around(WINDOWS[name], nn.Conv2d(8, 8, 3))).stem.out_channels == 4


SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "filtered": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * 0.5j, s=(8, 8), norm="ortho"),
    "amplitudes": lambda x: torch.fft.fft2(x).abs(),
    "parts": lambda x: torch.view_as_real(torch.fft.fft(x)).sum(-1),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_fourier_transforms_over_space(name: str) -> None:
    assert halved(Around(lambda _, x: SPECTRA[name](x), nn.Identity())).stem.out_channels == 4


BITS: dict[str, Callable[[Tensor], Tensor]] = {
    "complex": lambda x: x.contiguous().view(torch.cfloat).abs(),
    "halves": lambda x: x.contiguous().view(torch.float16).float(),
}


@pytest.mark.parametrize("name", BITS)
def test_numbers_that_are_read_as_numbers_of_another_size_stay(name: str) -> None:
    others = Around(lambda _, x: BITS[name](x), nn.Identity())
    assert infoprune.trace(others, X).group("stem").size == 8
    assert not infoprune.trace(others, X).group("stem").frozen
    last = Around(lambda _, x: BITS[name](x.permute(0, 2, 3, 1)).mean((1, 2), keepdim=True).mT, nn.Identity(), 1)
    assert "read as numbers of another size" in str(infoprune.trace(last, X).group("stem").reason)


def test_a_fourier_transform_over_channels_is_named() -> None:
    structure = infoprune.trace(Around(lambda _, x: torch.fft.fft(x, dim=1).abs(), nn.Identity()), X)
    assert "a Fourier transform runs over it" in str(structure.group("stem").reason)


def test_of_two_dimensions_that_merge_the_larger_one_is_cut() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.read = nn.Conv2d(8, 6, 1), nn.Linear(48, 8)

        def forward(self, x: Tensor) -> Tensor:
            products = torch.einsum("bchw,bdhw->bcd", x, self.other(x))
            return self.read(products.flatten(1))[..., None, None]

    net = halved(Around(lambda layer, x: layer(x), Outer()))
    assert (net.stem.out_channels, net.layer.other.out_channels, net.layer.read.in_features) == (4, 6, 24)


class Dynamic(nn.Module):
    """Mixes a bank of kernels anew for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.attention = nn.Parameter(torch.randn(4, 8, 8, 3, 3)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        mixed = self.attention(x.mean((2, 3))).softmax(-1) @ self.bank.flatten(1)
        kernels = mixed.view(b * self.bank.shape[1], c, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, -1, h, w)


def test_dynamic_convolutions_lose_filters() -> None:
    net = halved(Around(lambda layer, x: layer(x), Dynamic()))
    assert net.layer.bank.shape[1] * net.layer.bank.shape[2] == 32


def test_few_channels_right_at_the_ends_stay_unless_asked_for() -> None:
    def colours() -> nn.Module:
        ends = [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 3)]
        return nn.Sequential(*ends, nn.Conv2d(3, 3, 1))

    structure = infoprune.trace(colours(), X)
    assert [group.name for group in structure.prunable] == ["2"]
    assert "is one of 2 right at the model's input" in str(structure.group("1").reason)
    assert "is one of 3 right at the model's output" in str(structure.group("4").reason)
    asked = infoprune.trace(colours(), X, frozen=["!1", "!5"])
    assert [group.name for group in asked.prunable] == ["1", "2", "4"]


def test_what_a_cut_has_narrowed_to_a_few_channels_is_no_colour() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 9, 3, padding=1))
    infoprune.prune(net, X, "l1", filters=0.25, round_to=1)
    assert net[0].out_channels == 3
    assert [group.name for group in infoprune.trace(net, X).prunable] == ["0"]


def test_few_channels_behind_an_added_constant_are_no_colours() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 9, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(self.stem(x) + torch.arange(8.0)[:, None, None]))

    assert [group.name for group in infoprune.trace(Shifted(), X).prunable] == ["inner"]


class Product(nn.Module):
    """A convolution of 1x1 or 3x3 as a product of its flattened weight with windows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.randn(6, 8, *(size,) * 2))

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.size, padding=self.size // 2)
        return (self.weight.flatten(1) @ windows).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("left", [(1, 1), (1, 4), (5, 1), (2, 3)])
def test_a_flattened_kernel_may_keep_a_single_channel_or_filter(size: int, left: tuple[int, int]) -> None:
    net = randomise(Around(lambda layer, x: layer(x), Product(size), 6))
    original, structure = copy.deepcopy(net), infoprune.trace(net, X)
    removed = {"stem": range(8 - left[0]), "layer": range(6 - left[1])}
    plan = structure.plan({name: list(units) for name, units in removed.items()})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert net.layer.weight.shape[:2] == left[::-1]
    assert relative_error(original, net, plan, X) < 1e-12


class OverTokens(nn.Module):
    """A convolution of width one whose channels are tokens, and whose places are channels (gMLP)."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 12, 2, 2), nn.Conv1d(16, 16, 1, bias=bias)
        self.head = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((tokens * self.mix(tokens)).mean(1))


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_width_one_keeps_places_apart(bias: bool) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = randomise(OverTokens(bias))
    structure, original = infoprune.trace(net, x), copy.deepcopy(net)
    plan = structure.plan({"stem": [0, 3, 4, 7]})
    with FlopCounterMode(display=False) as counter:
        infoprune.shrink(net, plan)
        net(x)
    assert structure.cost_of(plan).macs == counter.get_total_flops() // 2 // len(x)
    assert relative_error(original, net, plan, x) < 1e-12


def test_its_bias_is_left_behind_at_places_that_go() -> None:
    net = OverTokens(bias=True)
    net.head, net.forward = (
        nn.Linear(1, 9),
        lambda x: net.head(  # type: ignore[method-assign, assignment]
            net.mix(net.stem(x).flatten(2).transpose(1, 2)).sum(2, keepdim=True)
        ),
    )
    assert "sum over channels would change" in str(infoprune.trace(net, torch.randn(2, 3, 8, 8)).group("stem").reason)


class Paired(nn.Module):
    """Takes entries at equal places of products between all channels, or at places beside these."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.stem, self.head, self.offset = nn.Conv2d(3, 10, 3), nn.Linear(10 - offset, 2), offset

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x).relu().flatten(2)
        return self.head((features @ features.transpose(1, 2)).diagonal(self.offset, 1, 2))


def test_a_diagonal_keeps_the_channels_that_meet_there() -> None:
    net = halved(Paired(0))
    assert (net.stem.out_channels, net.head.in_features) == (5, 5)
    assert "diagonal takes it by places" in str(infoprune.trace(Paired(1), X).group("stem").reason)


def test_einsum_over_a_repeated_letter_is_a_diagonal() -> None:
    net = Paired(0)
    net.forward = lambda x: net.head(  # type: ignore[method-assign]
        torch.einsum("bcc->bc", torch.einsum("bchw,bdhw->bcd", *[net.stem(x).relu()] * 2))
    )
    assert not infoprune.trace(net, X).group("stem").frozen


class Inserted(nn.Module):
    """Puts features of an image in place of some words (models of language that look at images)."""

    def __init__(self, whole_rows: bool) -> None:
        super().__init__()
        self.words, self.image, self.whole_rows = nn.Embedding(6, 12), nn.Conv2d(3, 12, 4, 4), whole_rows
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.tensor([[1, 5, 5, 2, 5, 5, 0]]).expand(len(x), -1)
        words, image = self.words(numbers), self.image(x).flatten(2).transpose(1, 2)
        mask = (numbers == 5)[..., None] if self.whole_rows else words > 0
        return self.head(words.masked_scatter(mask.expand_as(words), image))


def test_rows_that_a_mask_replaces_are_as_wide_as_the_others() -> None:
    net = halved(Inserted(whole_rows=True))
    assert (net.words.embedding_dim, net.image.out_channels, net.head.in_features) == (6, 6, 6)
    structure = infoprune.trace(Inserted(whole_rows=False), X)
    assert "masked_scatter fills it in the order of a mask" in str(structure.group("image").reason)


SPREAD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand_as": lambda gate, x: gate.expand_as(x),
    "cat": lambda gate, x: torch.cat([gate] * x.shape[1], 1),
    "stack": lambda gate, x: torch.stack([gate[:, 0]] * x.shape[1], 1),
    "any": lambda gate, x: (x != 0).any(1, keepdim=True) * gate,
    "the shape of one channel": lambda gate, x: torch.ones_like(x[:, :1]) * gate,
    "the shape of one map": lambda gate, x: torch.zeros_like(x[:, 0])[:, None] + gate,
    "index": lambda gate, x: gate[:, torch.zeros(x.shape[1], dtype=torch.long)],
    "rows by index": lambda gate, x: gate[0][torch.zeros(x.shape[1], dtype=torch.long)],
    "index_select": lambda gate, x: gate.index_select(1, torch.zeros(x.shape[1], dtype=torch.long)),
    "gather": lambda gate, x: gate.gather(1, torch.zeros_like(x, dtype=torch.long)),
}


@pytest.mark.parametrize("spread", SPREAD)
def test_one_gate_for_all_channels_binds_none(spread: str) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head(SPREAD[spread](self.gate(x).sigmoid(), x) * x)

    net, x = randomise(Gated()), torch.randn(1, 3, 8, 8)
    original, structure = copy.deepcopy(net), infoprune.trace(net, x)
    plan = structure.plan({"stem": [1, 2, 7]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, x) < 1e-5


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda x: x[:, :1].sigmoid()[:, torch.zeros(8, dtype=torch.long)] * x, "slice picks channels by number"),
        (
            lambda x: x.sum(1, keepdim=True)[:, torch.zeros(8, dtype=torch.long)] * x,
            "its size is fixed in the model's code (zeros",
        ),
        (lambda x: x.roll(1), "roll without dims moves entries from channel to channel"),
    ],
)
def test_what_takes_channels_by_their_places_is_named(made: Callable[[Tensor], Tensor], reason: str) -> None:
    structure = infoprune.trace(Around(lambda _, x: made(x), nn.Identity()), X)
    assert str(structure.group("stem").reason).startswith(reason)


def test_sums_over_a_stretched_gate_count_its_copies() -> None:
    def summed(layer: nn.Module, x: Tensor) -> Tensor:
        gate = layer(x).gather(1, torch.zeros_like(x, dtype=torch.long))
        return x * gate.sum(1, keepdim=True)

    structure = infoprune.trace(Around(summed, nn.Conv2d(8, 1, 1)), X)
    assert str(structure.group("stem").reason).startswith("sum over channels would change")


def test_the_values_of_one_channel_by_its_number_freeze_the_others() -> None:
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head(x) * x[:, :1].sigmoid()

    assert "slice picks channels by number" in str(
        infoprune.trace(Picked(), torch.randn(1, 3, 8, 8)).group("stem").reason
    )
