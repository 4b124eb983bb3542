"""Attention in which several query heads share a key and value head, and attention whose weights nobody reads."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure import check_plan

X = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """Six query heads, three key and value heads of width four."""

    def __init__(self, spelling: str, inferred: bool) -> None:
        super().__init__()
        self.spelling, self.inferred = spelling, inferred
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 12), nn.Linear(20, 12)
        self.out = nn.Linear(24, 20)
        self.num_heads, self.num_shared, self.head_dim = 6, 3, 4

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, shared = (-1, -1) if self.inferred else (self.num_heads, self.num_shared)
        q = self.query(x).view(b, t, heads, self.head_dim).transpose(1, 2)
        k, v = (f(x).view(b, t, shared, self.head_dim).transpose(1, 2) for f in (self.key, self.value))
        if self.spelling == "repeat_interleave":
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        elif self.spelling == "expand":
            k, v = (
                each[:, :, None].expand(b, each.shape[1], 2, t, self.head_dim).reshape(b, -1, t, self.head_dim)
                for each in (k, v)
            )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.spelling == "enable_gqa")
        return x + self.out(y.transpose(1, 2).reshape(b, t, -1))


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(6, 20), attention, nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.embed(x)).mean(1))


@pytest.mark.parametrize("inferred", [False, True])
@pytest.mark.parametrize("spelling", ["repeat_interleave", "expand", "enable_gqa"])
def test_a_shared_head_goes_with_its_query_heads(spelling: str, inferred: bool) -> None:
    net = Net(Shared(spelling, inferred)).eval()
    structure = infoprune.trace(net, X)
    assert structure.group("attention.query").size == 3
    plan = structure.plan({"attention.query": [1], "embed": [0, 5]})
    check_plan(net, X, structure, plan)
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    attention = net.attention
    assert (attention.query.out_features, attention.key.out_features) == (16, 8)  # type: ignore[union-attr]
    assert (attention.num_heads, attention.num_shared, attention.head_dim) == ((6, 3, 4) if inferred else (4, 2, 4))
    assert infoprune.verify(original, net, plan, X).ok


class WrittenOut(nn.Module):
    """Four query heads share two of keys and values, as many as the code says; how wide they are it leaves open."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 12), nn.Linear(20, 12)
        self.out = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.query(x).view(b, t, 4, -1).transpose(1, 2)
        k, v = (f(x).view(b, t, 2, -1).transpose(1, 2) for f in (self.key, self.value))
        if self.spelling == "repeat_interleave":
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        elif self.spelling == "expand":
            k, v = (each[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.spelling == "enable_gqa")
        return x + self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("spelling", ["repeat_interleave", "expand", "enable_gqa"])
def test_where_the_number_of_heads_is_written_out_their_values_lose_width(spelling: str) -> None:
    net = Net(WrittenOut(spelling)).double().eval()
    structure, original = infoprune.trace(net, X.double()), copy.deepcopy(net)
    assert [group.name for group in structure.prunable] == ["embed", "attention.value"]
    assert "computed from its width" in str(structure.group("attention.query").reason)
    plan = structure.plan({"attention.value": [1, 4], "embed": [0, 5]})
    infoprune.shrink(net, plan)
    attention = net.attention
    assert (attention.value.out_features, attention.out.in_features) == (8, 16)  # type: ignore[union-attr]
    assert infoprune.verify(original, net, plan, X.double()).ok


@pytest.mark.parametrize("need_weights", [True, False])
def test_averaged_weights_that_nobody_reads_keep_no_head(need_weights: bool) -> None:
    class OfTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(20, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=need_weights)[0]

    net = Net(OfTokens()).eval()
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    plan = structure.plan({"embed": [0, 3]})
    infoprune.shrink(net, plan)
    assert net.attention.attention.num_heads == 3  # type: ignore[union-attr]
    assert infoprune.verify(original, net, plan, X).ok


def test_averaged_weights_that_are_returned_keep_all_heads() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Linear(6, 20), nn.MultiheadAttention(20, 5, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embed(x)
            y, weights = self.attention(x, x, x)
            return y.mean(), weights

    structure = infoprune.trace(Watched().eval(), X)
    assert not structure.prunable
