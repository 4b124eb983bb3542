"""Blocks that move, cut, pad or join channels by their place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.building import Branches, Lambda, block, chain, conv, conv_bn
from tests.networks.convolutions import plain


@block
def halves(c: int, n: int) -> nn.Module:
    """Split in the middle, work on one half, swap or keep the order."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv(c // 2, c // 2)
            self.out_channels = c // 2 * 2

        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, : c // 2 * 2].chunk(2, 1)
            return torch.cat([self.inner(b), a] if n % 2 else [a, self.inner(b)], 1)

    return Halves()


def _shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@block
def shuffle(c: int, n: int) -> nn.Module:
    return Lambda(_shuffle if n % 2 else lambda x: torch.channel_shuffle(x, 2), c) if c % 2 == 0 else plain(c, n)


@block
def flip(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: x.flip(1), c)


@block
def roll(c: int, n: int) -> nn.Module:
    """By half of the channels, or by a number that is written out."""
    return Lambda(lambda x: x.roll(n // 2 or 1 if n % 2 else x.shape[1] // 2, 1), c)


@block
def permuted(c: int, n: int) -> nn.Module:
    order = torch.randperm(c, generator=torch.Generator().manual_seed(n)).tolist()
    return Lambda(lambda x: x[:, order], c)


@block
def strided(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), c)


@block
def swapped(c: int, n: int) -> nn.Module:
    cut = 3 if n % 2 else c // 2
    return Lambda(lambda x: torch.cat([x[:, cut:], x[:, :cut]], 1), c)


@block
def stacked(c: int, n: int) -> nn.Module:
    return Branches(lambda x, a, b: torch.stack([a, b], 1 + n % 2).flatten(1, 2), 16, conv(c, 8), conv(c, 8))


@block
def fixed_slice(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: x[:, :3], 3) if c > 3 else plain(c, n)


@block
def padded(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), c + 3)


@block
def padded_shortcut(c: int, n: int) -> nn.Module:
    return Branches(lambda x, y: F.pad(x, (0, 0, 0, 0, 2, 2)) + y, c + 4, conv_bn(c, c + 4))


@block
def pixel_shuffle(c: int, n: int) -> nn.Module:
    return chain(conv(c, 16), nn.PixelShuffle(2), nn.AvgPool2d(2), out=4)


@block
def pixel_unshuffle(c: int, n: int) -> nn.Module:
    return chain(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2), out=4 * c) if c <= 12 else plain(c, n)


@block
def replaced(c: int, n: int) -> nn.Module:
    """Every second place holds what another layer makes, in order (images among the words of a text)."""

    def join(x: Tensor, made: Tensor) -> Tensor:
        tokens, others = (features.flatten(2).transpose(1, 2) for features in (x, made))
        mask = (torch.arange(tokens.shape[1]) % 2 == n % 2)[:, None].expand_as(tokens)
        return tokens.masked_scatter(mask, others).transpose(1, 2).reshape(x.shape)

    return Branches(join, c, conv(c, c, 1))


class ManyHeads(nn.Module):
    """As many examples as a head is wide; the width is read from what comes in."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.num_heads = c // 2
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.view(b, h * w, self.num_heads, -1).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        made = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(made).transpose(1, 2).reshape(b, c, h, w)


def _enlarged(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


@block
def coinciding(c: int, n: int) -> nn.Module:
    """Parts that are as many as they are wide, or more: four groups of two or four, two channels of four places."""
    if n % 4 == 0:
        return ManyHeads(c) if c % 2 == 0 and c > 2 else plain(c, n)
    if n % 4 == 1:
        return chain(conv(c, 8, 1), conv(8, 8, groups=4), nn.GroupNorm(4, 8), nn.ReLU(), out=8)
    if n % 4 == 2:
        return chain(conv(c, 16, 1), nn.ChannelShuffle(4), conv(16, 16, groups=4), nn.ReLU(), out=16)
    return chain(conv(c, 8, 1), Lambda(_enlarged, 2), nn.AvgPool2d(2), out=2)
