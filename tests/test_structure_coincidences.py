"""Equal numbers in a model tie and freeze nothing that other numbers would leave free."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

import infoprune
from infoprune.structure.validation.probe_plans import tells_less
from tests.networks import conv, conv_bn, randomise
from tests.oracle import relative_error


class Around(nn.Module):
    """A block between a stem and a head; counts how much of the stem is left."""

    def __init__(self, block: nn.Module, width: int, made: int | None = None) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, width), block
        self.last, self.head = conv(made or width, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.block(self.stem(x))).relu().mean((2, 3)))


class SelfAttention(nn.Module):
    """Attention whose width is read from what comes in; whole heads go, since their width sets the scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.view(b, h * w, self.heads, -1).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        made = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v
        made = made.transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(made).transpose(1, 2).reshape(b, c, h, w)


class SequenceFirst(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        return x + self.attention(tokens, tokens, tokens)[0].permute(1, 2, 0).reshape(x.shape)


class InWindows(nn.Module):
    """Attention within windows, with a mask that the code makes and cuts into windows, too."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        k = self.window
        inside = x.view(b, c, h // k, k, w // k, k).permute(0, 2, 4, 3, 5, 1).reshape(-1, k * k, c)
        n = len(inside)
        mask = x.new_zeros(h, w)
        mask[-1:] = 1
        mask = mask.view(h // k, k, w // k, k).transpose(1, 2).reshape(-1, k * k)
        mask = (mask[:, None] - mask[:, :, None]) * 3
        q, key, v = self.qkv(inside).reshape(n, k * k, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q @ key.transpose(2, 3) * q.shape[-1] ** -0.5).view(b, -1, self.heads, k * k, k * k) + mask[
            None, :, None
        ]
        made = logits.view(n, self.heads, k * k, k * k).softmax(-1) @ v
        made = self.out(made.transpose(1, 2).reshape(n, k * k, c))
        return x + made.view(b, h // k, w // k, k, k, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Enlarge(nn.Module):
    """Four channels become four places, by views."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


class Involution(nn.Module):
    """Every place has kernels of its own, shared by groups of channels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups, self.kernels = groups, conv(width, 9 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = self.kernels(x).view(b, self.groups, 1, 9, h, w)
        inside = F.unfold(x, 3, padding=1).view(b, self.groups, c // self.groups, 9, h, w)
        return (kernels * inside).sum(3).view(b, c, h, w)


class AlongRows(nn.Module):
    """Attention along rows; how wide queries and keys are is read from what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = conv(width, width, 1), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        query = self.query(x).permute(0, 2, 3, 1).reshape(b * h, w, c)
        key = self.key(x).permute(0, 2, 1, 3).reshape(b * h, c, w)
        rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
        return x + ((query @ key).softmax(-1) @ rows).view(b, h, w, c).permute(0, 3, 1, 2)


def grouped_and_normalised(width: int, groups: int) -> nn.Module:
    return nn.Sequential(conv(width, width, groups=groups), nn.GroupNorm(groups, width), nn.ReLU())


def shuffled(width: int, groups: int) -> nn.Module:
    return nn.Sequential(Shuffle(groups), conv(width, width, groups=groups))


SHAPE = (2, 3, 8, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "a batch as large as a head is wide": (lambda: Around(SelfAttention(24, 3), 24), (8, 3, 8, 8), 3),
    "as many places as channels": (lambda: Around(SequenceFirst(64, 4), 64), SHAPE, 4),
    "as many heads as a head is wide": (lambda: Around(SequenceFirst(16, 4), 16), SHAPE, 4),
    "as many heads as a window is wide": (lambda: Around(InWindows(16, 4, 4), 16), SHAPE, 4),
    "as many windows as a head is wide": (lambda: Around(InWindows(12, 3, 4), 12), SHAPE, 3),
    "as many windows as heads": (lambda: Around(InWindows(32, 4, 4), 32), (1, 3, 8, 8), 4),
    "four groups of two, normalised": (lambda: Around(grouped_and_normalised(8, 4), 8), SHAPE, 2),
    "four groups of four, shuffled": (lambda: Around(shuffled(16, 4), 16), SHAPE, 4),
    "two channels of four places": (lambda: Around(Enlarge(), 8, 2), SHAPE, 2),
    "four groups of two share kernels": (lambda: Around(Involution(8, 4), 8), SHAPE, 4),
    "as many places in a row as channels": (lambda: Around(AlongRows(8), 8), SHAPE, 8),
}
"""A network whose numbers coincide, the shape of its inputs, and how many units of its stem can go one by one."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, int]:
    make, shape, units = CASES[request.param]
    return randomise(make()), torch.randn(shape, generator=torch.Generator().manual_seed(1)), units


def test_what_is_as_large_by_chance_ties_and_freezes_nothing(case: tuple[nn.Module, Tensor, int]) -> None:
    net, x, units = case
    assert infoprune.trace(net, x).group("stem.0").reason is None
    assert infoprune.trace(net, x).group("stem.0").size == units


def test_what_such_a_network_loses_changes_nothing_else(case: tuple[nn.Module, Tensor, int]) -> None:
    net, x, _ = case
    original, structure = copy.deepcopy(net), infoprune.trace(net, x)
    plan = structure.plan({group.name: [0] for group in structure.prunable})
    infoprune.shrink(net, plan)
    assert infoprune.verify(original, net, plan, x).ok
    if not any(isinstance(module, nn.GroupNorm) for module in net.modules()):  # which sees what is kept
        assert relative_error(original, net, plan, x) < 1e-8
    again = infoprune.prune(original, x, "l1", filters=0.6, round_to=1)
    assert again.after.macs < 0.9 * again.before.macs


def test_a_swin_keeps_as_little_for_small_images_as_for_large_ones() -> None:
    """At 64 x 64 the first blocks have nine windows, and the mask of shifted windows is cut into as many parts."""
    net = SwinTransformer([4, 4], 96, [2, 2], [3, 6], [7, 7], num_classes=10)
    prunable = [
        {(group.name, group.size) for group in infoprune.trace(net, torch.zeros(1, 3, size, size)).prunable}
        for size in (64, 160)
    ]
    assert prunable[0] == prunable[1]


def test_a_batch_of_as_many_examples_as_a_layer_has_channels_makes_it_no_layer_of_colours() -> None:
    """A constant on the channels is no input, however many examples there are."""
    net = nn.Sequential(conv_bn(3, 6), conv(6, 8))
    net.register_module("2", Constant(8))
    for size in (2, 8):
        structure = infoprune.trace(net, torch.zeros(size, 3, 8, 8))
        assert [group.name for group in structure.prunable] == ["0.0"]


class Constant(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(self.width, dtype=x.dtype)[:, None, None]


class WithHead(nn.Module):
    """Two layers as wide as each other, and images made vectors by ``flat``."""

    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 5)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.second(self.first(x)).mean((2, 3), keepdim=True)))


class Wrapped:
    """Stands for a tensor, with code of its own in place of ``flatten``."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @classmethod
    def __torch_function__(cls, func: object, types: object, args: tuple[Wrapped, int], kwargs: object) -> Tensor:
        x = args[0].x
        return x.view(x.shape[:2])


@pytest.mark.parametrize(
    ("flat", "may_read_another"),
    [
        (lambda x: torch.flatten(x, 1), False),
        (lambda x: x.flatten(1), False),
        (lambda x: x.reshape(len(x), x.shape[1]), True),
        (lambda x: x.view(x.shape[:2]), True),
        (lambda x: torch.flatten(Wrapped(x), 1), True),
    ],
)
def test_sizes_that_pytorch_computes_are_read_from_no_other_layer(
    flat: Callable[[Tensor], Tensor], may_read_another: bool
) -> None:
    structure = infoprune.trace(WithHead(flat), torch.zeros(2, 3, 8, 8))
    halved = structure.plan({group.name: range(4) for group in structure.prunable})
    assert tells_less(structure, halved) is may_read_another


class Tokens(nn.Module):
    """Attention over a class token, further tokens and the places of an image; positions are learned."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.patches, self.heads = nn.Conv2d(3, width, 4, stride=4), 4
        self.first, self.others = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 2, width))
        self.positions = nn.Parameter(torch.randn(1, places + 1, width))
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.positions
        x = torch.cat([x[:, :1], self.others.expand(len(x), -1, -1), x[:, 1:]], 1)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.head((x + self.out(made))[:, 0])


@pytest.mark.parametrize("size", [16, 24])
def test_as_many_places_as_channels_freeze_nothing(size: int) -> None:
    net, x = randomise(Tokens(16, (size // 4) ** 2)), torch.randn(2, 3, size, size)
    assert "patches" in [group.name for group in infoprune.trace(net, x).prunable]
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, x, "l1", filters=0.5).plan
    assert net.patches.out_channels == 8
    assert relative_error(original, net, plan, x) < 1e-12
