"""Attention in the forms that people write: whole heads go, with whatever has to be as wide as they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure import check_plan
from infoprune.structure.validation import traced_model
from tests.networks import randomise
from tests.tiers import thinned

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WIDTH, HEADS = 24, 3


class Around(nn.Module):
    """A convolution that makes tokens, something in between, a linear layer."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, WIDTH, 1), attention, nn.Linear(WIDTH, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(torch.relu(self.stem(x)).flatten(2).transpose(1, 2)).mean(1))


class Projected(nn.Module):
    """Queries, keys and values from one layer, and how they are attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.to_qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        return x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Linear(Projected):
    """Attention without a softmax over the tokens, which would be zero nowhere."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1e-6)
        return q @ (k.mT @ v) * weights[..., None]


class OverChannels(Projected):
    """A softmax over the channels of a head, another over the tokens."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) * self.scale @ (k.softmax(-2).mT @ v)


class Normalised(Projected):
    """Layer norm of the queries and keys of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // HEADS), nn.LayerNorm(WIDTH // HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.q_norm(q) * self.scale @ self.k_norm(k).mT).softmax(-1) @ v


class TwoForAll(nn.Module):
    """Six query heads share two of keys and values; a cut leaves one of these, or both."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.n_shared, self.head_dim = 6, 2, 4
        self.query, self.key, self.value = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.out = nn.Linear(24, WIDTH)

    def repeated(self, shared: Tensor) -> Tensor:
        b, n, _ = shared.shape
        heads = shared.view(b, n, self.n_shared, self.head_dim).transpose(1, 2)[:, :, None]
        times = self.n_heads // self.n_shared
        return heads.expand(b, self.n_shared, times, n, self.head_dim).reshape(b, self.n_heads, n, self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.query(x).view(b, n, self.n_heads, self.head_dim).transpose(1, 2)
        scores = q @ self.repeated(self.key(x)).mT / math.sqrt(self.head_dim)
        return x + self.out((scores.softmax(-1) @ self.repeated(self.value(x))).transpose(1, 2).reshape(b, n, -1))


class Queried(nn.Module):
    """PyTorch's own attention, asked by learned queries, which are stretched or repeated for each example."""

    def __init__(self, stretched: bool) -> None:
        super().__init__()
        self.queries, self.stretched = nn.Parameter(torch.randn(5, 1, WIDTH)), stretched
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        queries = self.queries.expand(-1, n, -1) if self.stretched else self.queries.repeat(1, n, 1)
        x = x.transpose(0, 1)
        return (queries + self.attention(queries, x, value=x)[0]).transpose(0, 1)


class Padded(nn.Module):
    """PyTorch's own attention with a mask that is made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return x + self.attention(x, x, x, key_padding_mask=padding)[0]


class Decoded(nn.Module):
    """Learned queries and PyTorch's own decoder of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(4, WIDTH)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.queries.weight.unsqueeze(0).repeat(len(x), 1, 1), x)


class PositionBias(nn.Module):
    """A number for each head and pair of positions; attention asks for them by a method, not by a call."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.num_heads, self.shape = HEADS, (positions, positions, HEADS)
        self.mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, HEADS))
        self.register_buffer("offsets", torch.rand(positions * positions, 2))

    def for_heads(self) -> Tensor:
        return self.mlp(self.offsets).view(-1, self.num_heads).tanh().view(self.shape).permute(2, 0, 1)


class Biased(nn.Module):
    """Attention that adds a bias made by one of its parts, which holds the number of heads too (ViT with RelPosMlp)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.bias = HEADS, WIDTH // HEADS, PositionBias(36)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.for_heads())
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


BLOCKS = {
    "linear": (Linear, "attention.to_qkv"),
    "softmax over channels": (OverChannels, "attention.to_qkv"),
    "normalised heads": (Normalised, "stem"),
    "two for all": (TwoForAll, "attention.query"),
    "stretched queries": (lambda: Queried(True), "stem"),
    "repeated queries": (lambda: Queried(False), "stem"),
    "padded": (Padded, "stem"),
    "decoder": (Decoded, "stem"),
    "bias by a method": (Biased, "stem"),
}


@pytest.mark.parametrize("name", thinned(BLOCKS))
def test_whole_heads_go(name: str) -> None:
    make, cut = BLOCKS[name]
    net = randomise(Around(make()))
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    group = structure.group(cut)
    assert not group.frozen
    for left in {max(group.size // 2, 2) if name == "linear" else 1, group.size - 1}:
        plan = structure.plan({cut: range(group.size - left)})
        check_plan(net, X, structure, plan)
        shrunk = copy.deepcopy(original)
        infoprune.shrink(shrunk, plan)
        assert infoprune.verify(original, shrunk, plan, X).ok


@pytest.mark.parametrize("name", ["softmax over channels", "decoder"])
def test_scores_are_made_anew_where_heads_are_found_late(name: str) -> None:
    net = randomise(Around(BLOCKS[name][0]()))
    before = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", macs=0.6, round_to=1).plan
    assert infoprune.verify(before, net, plan, X).ok


class RelativeRows(nn.Module):
    """Attention over a grid that adds, through ``einsum``, what each query says of the distance between rows."""

    def __init__(self, width: int, heads: int, rows: int, columns: int) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(6, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 5)
        self.distances = nn.Parameter(torch.randn(2 * rows - 1, width // heads))
        self.rows, self.columns, self.width = rows, columns, width
        self.heads, self.head_dim = heads, width // heads

    def forward(self, x: Tensor) -> Tensor:
        b, (rows, columns) = len(x), (self.rows, self.columns)
        x = self.embed(x)
        q, k, v = self.qkv(x).view(b, -1, 3, self.heads, self.head_dim).transpose(1, 3).unbind(2)
        apart = torch.arange(rows)[:, None] - torch.arange(rows) + rows - 1
        grid = q.reshape(b, self.heads, rows, columns, self.head_dim)
        told = torch.einsum("bhrcd,rkd->bhrck", grid, self.distances[apart])
        told = (told[..., None] + torch.zeros(columns)).reshape(b, self.heads, rows * columns, rows * columns)
        y = ((q @ k.transpose(2, 3) + told) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, -1, self.width))).mean(1)


@pytest.mark.parametrize("heads", [2, 3])
def test_heads_go_down_to_one_although_einsum_orders_a_single_head_in_another_way(heads: int) -> None:
    net, x = RelativeRows(12, heads, 4, 3).eval(), torch.randn(1, 12, 6)
    structure = infoprune.trace(net, x)
    assert structure.group("qkv").size == heads
    assert structure.group("embed").size == 12
    plan = structure.plan({"qkv": range(1, heads), "embed": [2, 7]})
    check_plan(net, x, structure, plan)
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    assert net.qkv.out_features == 3 * 12 // heads
    assert infoprune.verify(original, net, plan, x).ok


class Area(nn.Module):
    """Attention within areas of the image: the width of all heads, which is that of the input too, is written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.width = heads, width // heads, width
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, *size = x.shape
        areas, tokens = batch * 4, size[0] * size[1] // 4
        qkv = self.qkv(x).flatten(2).transpose(1, 2).reshape(areas, tokens, self.width * 3)
        qkv = qkv.view(areas, tokens, self.heads, self.head_width * 3).permute(0, 2, 3, 1)
        q, k, v = qkv.split([self.head_width] * 3, dim=2)
        out = (v @ (q.mT @ k).softmax(-1).mT).permute(0, 3, 1, 2)
        return x + self.out(out.reshape(batch, *size, self.width).permute(0, 3, 1, 2))


def test_what_explains_a_number_in_one_module_is_tried_in_its_siblings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    dry_run = traced_model.dry_run
    monkeypatch.setattr(traced_model, "dry_run", lambda *args: runs.append(args) or dry_run(*args))
    modules = (Area(16, 2), Area(16, 2), nn.Conv2d(16, 32, 1), Area(32, 4), Area(32, 4))
    net = randomise(nn.Sequential(nn.Conv2d(3, 16, 1), *modules, nn.Conv2d(32, 4, 1)))
    structure = infoprune.trace(net, torch.randn(1, 3, 8, 8))
    sizes = {group.name: group.size for group in structure.prunable}
    assert sizes == {"0": 16, "1.qkv": 2, "2.qkv": 2, "3": 32, "4.qkv": 4, "5.qkv": 4}
    assert len(runs) <= 5


class Rotated(Projected):
    """Positions that turn pairs of channels as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        places, pairs = torch.arange(36.0), WIDTH // HEADS // 2
        self.register_buffer("angles", torch.outer(places, 100 ** (-torch.arange(pairs) / pairs)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (self.turned(t) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned = pairs * torch.polar(torch.ones_like(self.angles), self.angles)
        return torch.view_as_real(turned).flatten(3).type_as(x)


def test_heads_whose_positions_are_complex_numbers_go() -> None:
    net = randomise(Around(Rotated()))
    original = copy.deepcopy(net)
    structure = infoprune.trace(net, X)
    assert structure.group("attention.to_qkv").size == HEADS
    infoprune.shrink(net, plan := structure.plan({"attention.to_qkv": [1]}))
    assert net.attention.heads == HEADS - 1
    assert infoprune.verify(original, net, plan, X).errors[0] < 1e-5
