"""Blocks of convolutions: residual, joined, grouped, transposed, gated, shared, chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from tests.networks.building import Branches, Lambda, block, chain, conv, conv_bn


@block
def plain(c: int, n: int) -> nn.Module:
    out = (4, 8, 12, 6)[n % 4]
    return chain(conv_bn(c, out, (1, 3)[n % 2]), out=out)


@block
def biased_sigmoid(c: int, n: int) -> nn.Module:
    """What is removed is not zero behind the sigmoid."""
    return chain(conv(c, 8), nn.Sigmoid(), out=8)


@block
def residual(c: int, n: int) -> nn.Module:
    return Branches(lambda x, y: F.relu(x + y), c, nn.Sequential(conv_bn(c, 6 + n % 3), conv(6 + n % 3, c)))


@block
def projected_residual(c: int, n: int) -> nn.Module:
    out = 8
    return Branches(lambda x, a, b: a + b, out, conv_bn(c, out), conv(c, out, 1))


@block
def inplace_residual(c: int, n: int) -> nn.Module:
    def join(x: Tensor, y: Tensor) -> Tensor:
        y += x
        return F.relu_(y)

    return Branches(join, c, conv_bn(c, c))


@block
def concat(c: int, n: int) -> nn.Module:
    return Branches(lambda x, a, b: torch.cat([a, b], 1), 4 + 6, conv_bn(c, 4), conv_bn(c, 6, 1))


@block
def dense(c: int, n: int) -> nn.Module:
    return Branches(lambda x, y: torch.cat([x, y], 1), c + 4, nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), conv(c, 4)))


@block
def depthwise(c: int, n: int) -> nn.Module:
    multiplier = 1 + n % 2
    return chain(conv(c, c * multiplier, groups=c), nn.BatchNorm2d(c * multiplier), out=c * multiplier)


@block
def grouped(c: int, n: int) -> nn.Module:
    return chain(conv(c, 12), nn.ReLU(), conv(12, (12, 24)[n % 2], groups=(2, 3, 4, 6)[n % 4]), out=(12, 24)[n % 2])


@block
def transposed(c: int, n: int) -> nn.Module:
    groups = 2 if n % 2 else 1
    up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups)
    return chain(conv_bn(c, 8), up, nn.MaxPool2d(2), out=8)


@block
def depthwise_transposed(c: int, n: int) -> nn.Module:
    return chain(nn.ConvTranspose2d(c, c, 3, padding=1, groups=c), out=c)


@block
def squeeze_excite(c: int, n: int) -> nn.Module:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(c, 4, 1), nn.ReLU(), conv(4, c, 1), nn.Sigmoid())
    return Branches(lambda x, g: x * g, c, gate)


@block
def spatial_gate(c: int, n: int) -> nn.Module:
    """Statistics over channels: they change with the set of channels."""
    return Lambda(lambda x: x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax(1, keepdim=True)), c)


@block
def channel_softmax(c: int, n: int) -> nn.Module:
    return Lambda(lambda x: x.softmax(1), c)


class Shared(nn.Module):
    """One module called twice."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = conv_bn(c, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x)) + x


@block
def shared(c: int, n: int) -> nn.Module:
    return Shared(c)


@block
def shared_weight(c: int, n: int) -> nn.Module:
    a, b = conv(c, c), conv(c, c)
    b.weight = a.weight
    return Branches(lambda x, p, q: torch.cat([p, q], 1), 2 * c, a, b)


class Experts(nn.Module):
    """Runs some of its experts."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        out = c if n % 2 else 8
        self.experts = nn.ModuleList(conv_bn(c, out) for _ in range(3))
        self.chosen = ([0], [1, 2], [2], [0, 1, 2])[n // 2 % 4]
        self.residual = out == c
        self.out_channels = out

    def forward(self, x: Tensor) -> Tensor:
        made = sum(self.experts[number](x) for number in self.chosen)
        return x + made if self.residual else made


@block
def experts(c: int, n: int) -> nn.Module:
    return Experts(c, n)


class Deformable(nn.Module):
    """A deformable convolution, with or without groups of channels that share offsets, and a mask."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.shared = 2 if n % 2 else 1
        self.inner = conv(c, 8)
        self.offset, self.mask = conv(8, 18 * self.shared, 1), conv(8, 9 * self.shared, 1)
        self.deform = DeformConv2d(8, 6, 3, padding=1, groups=2 if n // 2 % 2 else 1)
        self.out_channels = 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.deform(x, self.offset(x).tanh(), self.mask(x).sigmoid())


@block
def deformable(c: int, n: int) -> nn.Module:
    return Deformable(c, n)
