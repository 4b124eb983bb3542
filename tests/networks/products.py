"""Blocks of products and sums over channels or places: attention, einsum, windows, frequencies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.building import Branches, Lambda, block, chain, conv


class Mixer(nn.Module):
    """Mixes places, so that what it costs follows the channels that it is repeated along."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.places = nn.Linear(64, 64)
        self.channels = nn.Linear(c, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(x.flatten(2)).view_as(x)
        return x + self.channels(x.movedim(1, -1)).movedim(-1, 1)


@block
def mixer(c: int, n: int) -> nn.Module:
    return Mixer(c, n)


@block
def glu(c: int, n: int) -> nn.Module:
    return chain(conv(c, 12), nn.GLU(1), out=6)


class Attention(nn.Module):
    """Self-attention over positions, with sizes read from the tensor or written out."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.heads = 2
        self.width = 4
        self.qkv = nn.Linear(c, 3 * 8)
        self.out = nn.Linear(8, c)
        self.fused = bool(n % 2)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens)
        if self.fused:
            q, k, v = qkv.reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (t.view(b, h * w, self.heads, self.width).transpose(1, 2) for t in qkv.chunk(3, -1))
            y = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).view(b, c, h, w)


@block
def attention(c: int, n: int) -> nn.Module:
    return Attention(c, n)


class Linears(nn.Module):
    """A channel mixer on flattened maps, through einsum."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, 7) / c**0.5)
        self.back = nn.Parameter(torch.randn(7, c) / 7**0.5)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bdhw,dc->bchw", F.relu(torch.einsum("bchw,cd->bdhw", x, self.weight)), self.back)


@block
def einsum(c: int, n: int) -> nn.Module:
    return Linears(c)


def _through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y.flatten(2)[:, :, ::3].exp_()
    return y


def _into_a_buffer(x: Tensor) -> Tensor:
    made = x.new_zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    made[:, : x.shape[1]], made[:, x.shape[1] :] = x.relu(), x.cos()
    return made


SUMMED: list[Callable[[Tensor], Tensor]] = [
    _through_a_view,
    _into_a_buffer,
    lambda x: F.hardtanh(x, 0.5, 2),
    lambda x: x.clamp(-0.5, 0.5),
    lambda x: F.pad(x, (1, 0, 0, 0), value=0.5)[..., 1:],
    lambda x: x.masked_fill(x > 0, 0.5),
    lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    lambda x: x.sigmoid() @ x.transpose(2, 3).sigmoid(),
]
"""What is summed over channels; some of it is zero where channels are removed."""


@block
def summed(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: x + SUMMED[n % len(SUMMED)](x).sum(1, keepdim=True).tanh(), c)


class Mixing(nn.Module):
    """Mixes positions, which leaves a bias on each channel, and sums over channels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.mixer, self.scale = nn.Linear(64, 64), nn.Parameter(torch.ones(1))
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0].numel() != 64:
            return x
        mixed = self.mixer(x.flatten(2)).view(x.shape)
        return x + (mixed.sum(1, keepdim=True) + (x.sigmoid() * self.scale).sum(1, keepdim=True)).tanh()


@block
def mixing(c: int, n: int) -> nn.Module:
    return Mixing(c)


class Scaling(nn.Module):
    """A correlation that is scaled by the root of its width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.query, self.key = conv(c, 8, 1), conv(c, 8, 1)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x), self.key(x)
        return x + (query * key).sum(1, keepdim=True) / query.shape[1] ** 0.5


@block
def scaling(c: int, n: int) -> nn.Module:
    return Scaling(c)


class Windows(nn.Module):
    """A convolution as a product with windows, and windows put together again."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, c, 3, 3) / c**0.5)
        self.folds = bool(n % 2)
        self.out_channels = c if self.folds else 6

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        if self.folds:
            return F.fold(F.unfold(x, 3, padding=1).sigmoid(), (h, w), 3, padding=1)
        return (self.weight.flatten(1) @ F.unfold(x, 3, padding=1)).view(b, -1, h, w)


@block
def windows(c: int, n: int) -> nn.Module:
    return Windows(c, n)


@block
def spectral(c: int, n: int) -> nn.Module:
    """A filter in the frequencies of space, or the amplitudes, summed over channels."""
    if n % 2:
        return Lambda(lambda x: x + torch.fft.rfft2(x).abs().sum(1, keepdim=True).mean((2, 3), keepdim=True).tanh(), c)
    return Lambda(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * (1 + 0.5j), s=x.shape[2:]), c)


@block
def diagonal(c: int, n: int) -> nn.Module:
    """A gate from the products of each channel with what a layer has made of it."""

    def join(x: Tensor, made: Tensor) -> Tensor:
        products = x.flatten(2) @ made.flatten(2).transpose(1, 2) / x[0, 0].numel()
        gates = torch.einsum("bcc->bc", products) if n % 2 else products.diagonal(dim1=1, dim2=2)
        return x * gates.tanh()[:, :, None, None]

    return Branches(join, c, conv(c, c, 1))


class Interacting(nn.Module):
    """A bilinear layer of pooled features, which are zero where removed or not."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.a, self.b = conv(c, 6, 1), conv(c, 8, 1)
        self.product = nn.Bilinear(6, 8, c)
        self.squashes = bool(n % 2)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).mean((2, 3)), self.b(x).amax((2, 3))
        made = self.product(*(t.sigmoid() for t in (a, b)) if self.squashes else (a, b))
        return x + made.tanh()[..., None, None]


@block
def interacting(c: int, n: int) -> nn.Module:
    return Interacting(c, n)
