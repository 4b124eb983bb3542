"""Blocks of norms, scales and weights that are computed before each call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

from tests.networks.building import Lambda, block, chain, conv


@block
def group_norm(c: int, n: int) -> nn.Module:
    return chain(conv(c, 12), nn.GroupNorm((1, 2, 3, 12)[n % 4], 12), nn.SiLU(), out=12)


@block
def instance_norm(c: int, n: int) -> nn.Module:
    return chain(nn.InstanceNorm2d(c, affine=bool(n % 2)), nn.ReLU(), out=c)


class ChannelLayerNorm(nn.Module):
    def __init__(self, c: int, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c, elementwise_affine=affine)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@block
def layer_norm(c: int, n: int) -> nn.Module:
    return ChannelLayerNorm(c, bool(n % 2))


@block
def prelu(c: int, n: int) -> nn.Module:
    return chain(nn.PReLU(c if n % 2 else 1), out=c)


class Scaled(nn.Module):
    """Bare parameters and a buffer table that belong to channels."""

    def __init__(self, c: int, table: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1, c, 1, 1))
        self.shift = nn.ParameterList([nn.Parameter(torch.randn(c, 1, 1))])
        self.register_buffer("table", torch.randn(c, 8, 8) if table else torch.randn(1, 8, 8))
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift[0] + self.table


@block
def scaled(c: int, n: int) -> nn.Module:
    return Scaled(c, bool(n % 2))


@block
def constant(c: int, n: int) -> nn.Module:
    """A constant of the model's code along the channels, of fixed or of following size."""
    if n % 2:
        return Lambda(lambda x: x + torch.arange(c, dtype=x.dtype).view(-1, 1, 1), c)
    return Lambda(lambda x: x + torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype), c)


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    over_kept = "weight"

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=1)


@block
def standardised(c: int, n: int) -> nn.Module:
    return chain(Standardised(c, 8, 3), nn.ReLU(), out=8)


@block
def masked(c: int, n: int) -> nn.Module:
    """A weight that is computed before each call, from a mask or by weight norm, old or new."""
    layer = conv(c, 8, 1 + 2 * (n % 2))
    if n // 2 % 2:
        layer.over_kept = "parametrizations.weight.original1"  # a filter of zeros has no direction
        return chain(nn.utils.parametrizations.weight_norm(layer), nn.ReLU(), out=8)
    with torch.no_grad():  # else the masked weight could not be copied
        return chain(nn.utils.prune.l1_unstructured(layer, "weight", 0.3), nn.ReLU(), out=8)


class Adapted(nn.Module):
    """A 1x1 convolution with a low-rank adapter, or one whose kernel is a buffer (Sobel, blur pooling)."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.conv = conv(c, 8, 1)
        self.down, self.up = nn.Parameter(torch.randn(2, c)), nn.Parameter(torch.randn(8, 2))
        self.register_buffer("blur", torch.rand(8, 1, 3, 3))
        self.blurs = bool(n % 2)
        self.out_channels = 8

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight + (self.up @ self.down)[:, :, None, None], self.conv.bias)
        return F.conv2d(x, self.blur, padding=1, groups=x.shape[1]) if self.blurs else x.relu()  # type: ignore[arg-type]


@block
def adapted(c: int, n: int) -> nn.Module:
    return Adapted(c, n)


class Normalised(nn.Module):
    """RMS norm or layer norm over channels, written by hand."""

    over_kept = "weight"

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c)), nn.Parameter(torch.randn(c))
        self.centres = bool(n % 2)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        if self.centres:
            x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


@block
def normalised(c: int, n: int) -> nn.Module:
    return Normalised(c, n)


@block
def unit_length(c: int, n: int) -> nn.Module:
    """Features divided by their length over channels, which are zero where removed behind a ReLU."""
    by_hand = Lambda(lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-6), 8)
    return chain(conv(c, 8), nn.ReLU(), Lambda(F.normalize, 8) if n % 2 else by_hand, out=8)
