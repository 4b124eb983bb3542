"""Networks composed at random from the blocks that pruners get wrong, for hypothesis."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {}
"""name -> (input channels, a small random number) -> block; every block has ``out_channels``."""


def block(make: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    BLOCKS[make.__name__] = make
    return make


class Lambda(nn.Module):
    """A function as a block that keeps its number of channels (unless told otherwise)."""

    def __init__(self, function: Callable[[Tensor], Tensor], out_channels: int) -> None:
        super().__init__()
        self.function = function
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Branches(nn.Module):
    """Runs modules and joins their results with a function."""

    def __init__(self, join: Callable[..., Tensor], out_channels: int, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = join
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, *(branch(x) for branch in self.branches))


def chain(*modules: nn.Module, out: int) -> nn.Module:
    result = nn.Sequential(*modules)
    result.out_channels = out  # type: ignore[assignment]
    return result


def conv(c: int, out: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(c, out, k, padding=k // 2, **options)  # type: ignore[arg-type]


def conv_bn(c: int, out: int, k: int = 3) -> nn.Module:
    return nn.Sequential(conv(c, out, k, bias=False), nn.BatchNorm2d(out), nn.ReLU())


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


class Parts(nn.Module):
    """Parts whose sizes the module keeps in a list, in a number, or in twice that number."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.sizes = [(5, 3, 4), [4, 4, 4]][n % 2]
        self.kind = n // 2 % 3
        self.part, self.both = 4, 8
        total = {0: sum(self.sizes), 1: 3 * self.part, 2: self.both}[self.kind]
        last = {0: self.sizes[-1], 1: self.part, 2: self.both // 2}[self.kind]
        self.expand, self.inner = conv(c, total, 1), conv(last, last)
        self.scale = nn.Parameter(torch.randn(last))
        self.shape = (last, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        *rest, last = self.expand(x).split((self.sizes, self.part, self.both // 2)[self.kind], dim=1)
        return torch.cat([*rest, self.inner(last).relu() * self.scale.view(self.shape)], 1)


@block
def parts(c: int, n: int) -> nn.Module:
    made = Parts(c, n)
    return chain(made, out=made.expand.out_channels)


class Remembering(nn.Module):
    """Computes a factor of every channel once for each device."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(c, 1, 1))
        self.known: dict[str, Tensor] = {}
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        device = str(x.device)
        if device not in self.known:
            self.known[device] = self.factor.tanh()
        return x * self.known[device]


@block
def remembering(c: int, n: int) -> nn.Module:
    return Remembering(c)


class Reading(nn.Module):
    """Takes what it has made for as wide as what came in: the whole of it, or two of its three parts."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.parted = bool(n % 2)
        self.first, self.second = conv(c, 2 * c + 3 if self.parted else c, 1), conv(c, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if not self.parted:
            return self.second(self.first(x).reshape(b, c, -1).tanh().unflatten(2, (h, w)))
        query, context, gates = self.first(x).split((c, c, 3), 1)
        return query * (self.second(context) * gates[:, :1] + gates[:, 1:2] - gates[:, 2:])


@block
def reading(c: int, n: int) -> nn.Module:
    return Reading(c, n)


class Checking(nn.Module):
    """Refuses another width than it was made for; two of its numbers are the same, and it asks for one of them."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.channels = c
        self.steps = self.width = (c, 6)[n % 2]
        self.wide, self.narrow = conv(c, self.width, 1), conv(self.width, c, 1)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels, not {self.channels}")
        return x + self.narrow(self.wide(x).relu().reshape(-1, self.width, *x.shape[2:]))


@block
def checking(c: int, n: int) -> nn.Module:
    return Checking(c, n)


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


class Keeping(nn.Module):
    """Keeps its features for whoever asks."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.inner, self.outer = conv(c, 6), conv(6, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.inner(x).relu()
        return self.outer(self.features)


@block
def keeping(c: int, n: int) -> nn.Module:
    return Keeping(c)


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


@block
def replaced(c: int, n: int) -> nn.Module:
    """Every second place holds what another layer makes, in order (images among the words of a text)."""

    def join(x: Tensor, made: Tensor) -> Tensor:
        tokens, others = (features.flatten(2).transpose(1, 2) for features in (x, made))
        mask = (torch.arange(tokens.shape[1]) % 2 == n % 2)[:, None].expand_as(tokens)
        return tokens.masked_scatter(mask, others).transpose(1, 2).reshape(x.shape)

    return Branches(join, c, conv(c, c, 1))


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


@dataclass
class Features:
    """What a layer hands to the code around it."""

    maps: list[Tensor]
    gate: Tensor


class Handing(nn.Module):
    """Reads what a layer returns in an object, a mapping, or a generator."""

    class Inner(nn.Module):
        def __init__(self, c: int, n: int) -> None:
            super().__init__()
            self.a, self.b, self.gate = conv(c, 6), conv(c, 6, 1), conv(c, 6, 1)
            self.kind = n % 3

        def forward(self, x: Tensor) -> Any:
            found = Features([self.a(x).relu(), self.b(x)], self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
            if self.kind == 0:
                return found
            return UserDict(vars(found)) if self.kind == 1 else (getattr(found, name) for name in ("maps", "gate"))

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.inner = self.Inner(c, n)
        self.out_channels = 6

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        if isinstance(found, UserDict):
            found = Features(**found)
        maps, gate = (found.maps, found.gate) if isinstance(found, Features) else found
        return sum(maps) * gate


@block
def handing(c: int, n: int) -> nn.Module:
    return Handing(c, n)


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


class Net(nn.Module):
    """Stem, blocks, and a head behind pooling or flattening."""

    def __init__(self, kinds: list[tuple[str, int]], flatten: bool) -> None:
        super().__init__()
        self.kinds = kinds
        self.stem = conv_bn(3, 8)
        blocks, c = [], 8
        for kind, number in kinds:
            made = BLOCKS[kind](c, number)
            blocks.append(made)
            c = int(made.out_channels)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(c, 6, 1)
        self.head = nn.Linear(6 * 64 if flatten else 6, 5)
        self.flatten = flatten

    def __repr__(self) -> str:
        return f"Net({self.kinds}, flatten={self.flatten})"

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic its own value, so that nothing agrees by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.7)
            else:
                fan_in = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 10
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    return model.eval()


@st.composite
def networks(draw: st.DrawFn, most_blocks: int = 6) -> Net:
    """Random networks; shrinks to few and simple blocks."""
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(list(BLOCKS)), st.integers(0, 7)), min_size=1, max_size=most_blocks)
    )
    net = Net(kinds, draw(st.booleans()))
    randomise(net, seed=len(kinds))
    return net
