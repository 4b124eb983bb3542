"""Sizes of splits that a model's code keeps in numbers, lists and tuples, and that have to follow a cut."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import PlanError
from infoprune.structure import check_plan
from infoprune.structure.surgery.attributes import number
from infoprune.structure.validation.module_paths import siblings
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """A gate, what passes it untouched and what goes through a convolution (MambaOut, InceptionNeXt)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = sizes
        gate, _, inner = sizes
        self.stem, self.head = nn.Conv2d(3, sum(sizes), 3, padding=1), nn.Conv2d(gate, 4, 1)
        self.inner = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.places = [torch.arange(2), torch.arange(3)]  # a list of something else
        self.known = (1, "two", None)

    def forward(self, x: Tensor) -> Tensor:
        gate, passed, inner = self.stem(x).split(self.sizes, dim=1)
        return self.head(gate.relu() * torch.cat([passed, self.inner(inner)], 1))


@pytest.mark.parametrize("sizes", [(12, 8, 4), [12, 6, 6]], ids=["tuple", "list with equal parts"])
def test_sizes_of_a_split_follow(sizes: Sequence[int], tmp_path: Path) -> None:
    net = randomise(Gated(sizes))
    structure = infoprune.trace(net, X)
    assert sum(group.size for group in structure.prunable) == 12, "gates go with what they let pass"
    original = copy.deepcopy(net)
    plan = structure.plan({group.name: range(group.size // 2) for group in structure.prunable})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert type(net.sizes) is type(sizes)
    assert list(net.sizes) == [size // 2 for size in sizes]
    assert list(original.sizes) == list(sizes), "the copy has its own"
    assert relative_error(original, net, plan, X) < 1e-12

    again = infoprune.trace(net, X)
    later = again.plan({again.prunable[0].name: [0]})
    infoprune.shrink(net, later)
    joined = infoprune.plan_of(net)
    assert {name: values for name, values in joined.attributes.items() if values[0] != values[1]} == {
        f"sizes[{place}]": (before, after)
        for place, (before, after) in enumerate(zip(sizes, net.sizes, strict=True))
        if before != after
    }
    infoprune.save(net, tmp_path / "net.pt")
    twin = infoprune.load(tmp_path / "net.pt", Gated(type(sizes)(sizes)))
    assert list(twin.sizes) == list(net.sizes)
    with torch.no_grad():
        assert torch.equal(twin.eval()(X), net.eval()(X))
        infoprune.shrink(original, infoprune.PruningPlan.from_json(joined.to_json()))
        assert torch.equal(original.eval()(X), net(X))


class Scales(nn.Module):
    """Parts of one size, each convolved with what became of the one before (Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.stem, self.head = nn.Conv2d(3, 18, 1), nn.Conv2d(18, 4, 1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x).relu(), self.width, 1)
        done = [parts[-1]]
        for conv, part in zip(self.convs, parts, strict=False):
            done.append(conv(part if len(done) == 1 else done[-1] + part).relu())
        return self.head(torch.cat(done, 1))


def test_parts_of_one_size_lose_equally_many() -> None:
    net = randomise(Scales())
    structure = infoprune.trace(net, X)
    assert structure.prunable
    original, plan = copy.deepcopy(net), structure.plan({group.name: [0, 1] for group in structure.prunable})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert net.width == net.convs[0].in_channels == net.convs[1].in_channels == net.stem.out_channels // 3 < 6
    assert relative_error(original, net, plan, X) < 1e-12


class HalvesOf(nn.Module):
    """Halves of a width that is written down, and a factor brought to a shape that is (CSPDarkNet, CAFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.expanded, self.shape = 12, (6, 1, 1)
        self.stem, self.inner, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 4, 1)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split(self.expanded // 2, dim=1)
        return self.head(torch.cat([left, self.inner(right) * self.scale.view(self.shape)], 1))


def test_a_width_that_is_halved_and_a_shape_follow() -> None:
    net = randomise(HalvesOf())
    structure = infoprune.trace(net, X)
    assert {group.name: group.size for group in structure.prunable} == {"stem": 6, "inner": 6}
    original, plan = copy.deepcopy(net), structure.plan({"stem": [0, 1], "inner": [2]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert (net.expanded, net.shape) == (8, (5, 1, 1))
    assert relative_error(original, net, plan, X) < 1e-12


def test_parts_of_a_size_that_is_no_number_of_the_model_stay() -> None:
    class Written(Scales):
        def forward(self, x: Tensor) -> Tensor:
            parts = torch.split(self.stem(x), 6, 1)
            return self.head(torch.cat([self.convs[0](parts[0]), parts[1], self.convs[1](parts[2])], 1))

    net = randomise(Written())
    del net.width
    structure = infoprune.trace(net, X)
    assert "its size is fixed in the model's code (split" in str(structure.group("stem").reason)


def test_a_plan_for_another_sequence_is_refused() -> None:
    net = randomise(Gated((12, 8, 4)))
    structure = infoprune.trace(net, X)
    plan = structure.plan({group.name: [0] for group in structure.prunable})
    assert plan.attributes["sizes[0]"] == (12, 10)
    for other, message in (
        ((13, 8, 4), r"sizes\[0\] is 13, the plan expects 12"),
        ((12,), r"rewrites sizes\[1\], which this model does not have"),
        (12, r"rewrites sizes\[0\], which this model does not have"),
    ):
        net.sizes = other
        with pytest.raises(PlanError, match=message):
            infoprune.shrink(net, plan)
        assert net.stem.out_channels == 24


def test_likes_of_pytorchs_layers_are_those_in_the_same_place() -> None:
    """What calls one linear layer in a wrong way says nothing of all others."""
    net = nn.Sequential(Scales(), Scales(), nn.Sequential(nn.Conv2d(4, 4, 1)))
    modules = dict(net.named_modules())
    assert siblings(modules, "0") == ["1"]
    assert siblings(modules, "0.head") == ["1.head"]
    assert siblings(modules, "1.convs.1") == ["0.convs.1"]
    assert siblings(modules, "2.0") == siblings(modules, "") == []


def test_a_number_by_its_name() -> None:
    module = nn.Module()
    module.sizes, module.width = (3, 5), 7
    assert (number(module, "sizes[1]"), number(module, "width")) == (5, 7)
    with pytest.raises(LookupError):
        number(module, "width[0]")


class Attention(nn.Module):
    """Attention as transformers write it: every width is a number, and some of these are the same."""

    def __init__(self, width: int, heads: int, factor: bool = False) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.head_width = width // heads
        self.all_heads = self.head_width * heads
        self.channels = 5
        self.query, self.key, self.value = (nn.Linear(width, self.all_heads) for _ in range(3))
        self.out = nn.Linear(self.all_heads, width)
        self.factor = factor

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        found = query @ key.transpose(-1, -2)
        found = found / math.sqrt(self.head_width) if self.factor else found
        mixed = (found.softmax(-1) @ value).transpose(1, 2).contiguous()
        return x + self.out(mixed.view(*mixed.shape[:-2], self.all_heads))


class Patches(nn.Module):
    """Refuses inputs of another width than it was made for (transformers)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.projection = nn.Conv2d(channels, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels, not {self.channels}")
        return self.projection(x)


class Tokens(nn.Module):
    """Attention among the places of an image."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def test_of_several_equal_numbers_those_that_the_code_asks_for_follow() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 16, 1), Tokens(Attention(16, 1)), nn.Conv2d(16, 4, 1))).eval()
    attention = net[1].attention
    structure = infoprune.trace(net, X)
    sizes = {group.name: group.size for group in structure.prunable}
    assert sizes == {"0": 16, "1.attention.query": 16}, "the stream; query, key and value"
    original = copy.deepcopy(net)
    plan = structure.plan({group.name: range(5) for group in structure.prunable})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert (attention.head_width, attention.all_heads) == (11, 11)
    assert (attention.width, attention.heads, attention.channels) == (16, 1, 5), "nobody asks for these"
    assert relative_error(original, net, plan, X) < 1e-12


class Scaled(Attention):
    """Attention whose heads are as wide as may be; PyTorch scales by the root of that itself (SAM, ViT in timm)."""

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_whole_heads_go_where_nothing_but_a_factor_comes_from_their_width() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 12, 1), Tokens(Scaled(12, 3)), nn.Conv2d(12, 4, 1))).eval()
    structure = infoprune.trace(net, X)
    assert {group.name: group.size for group in structure.prunable} == {"0": 12, "1.attention.query": 3}
    original, plan = copy.deepcopy(net), structure.plan({"0": [4, 5], "1.attention.query": [1]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert (net[1].attention.heads, net[1].attention.query.out_features) == (2, 8)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("heads", [2, 3])
def test_whole_heads_go_where_their_width_is_a_factor(heads: int) -> None:
    """Of two heads one stays, and PyTorch takes another way through dimensions of one."""
    wide, narrow = Tokens(Attention(12, heads, factor=True)), Tokens(Attention(12, 1, factor=True))
    net = randomise(nn.Sequential(nn.Conv2d(3, 12, 1), wide, Patches(12, 12), narrow, nn.Conv2d(12, 4, 1))).eval()
    structure = infoprune.trace(net, X)
    sizes = {group.name: group.size for group in structure.prunable}
    assert sizes == {"0": 12, "1.attention.query": heads, "2.projection": 12}
    assert "a factor is computed from its width (div" in str(structure.group("3.attention.query").reason)
    original = copy.deepcopy(net)
    plan = structure.plan({name: [0] for name in sizes})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert (wide.attention.head_width, wide.attention.all_heads) == (12 // heads, 12 - 12 // heads)
    assert (net[2].channels, narrow.attention.head_width) == (11, 12)
    assert relative_error(original, net, plan, X) < 1e-12


class Flattened(nn.Module):
    """Maps are flattened by the number of channels times that of places."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.maps = 12, nn.Conv2d(3, 12, 3, 2, 1)
        self.hidden, self.head = nn.Linear(12 * 4 * 4, 20), nn.Linear(20, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.maps(x).relu().view(-1, self.channels * 4 * 4)).relu())


def test_a_number_of_channels_that_is_multiplied_follows() -> None:
    net, x = randomise(Flattened()), torch.randn(2, 3, 8, 8)
    structure, original = infoprune.trace(net, x), copy.deepcopy(net)
    plan = structure.plan({"maps": [1, 4, 5, 11], "hidden": [0]})
    infoprune.shrink(net, plan)
    assert net.channels == 8
    assert relative_error(original, net, plan, x) < 1e-12


class Listed(nn.Module):
    """Keeps sizes in its class, for all of its instances."""

    widths = [16, 32]  # noqa: RUF012
    places = 64

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x).view(-1, self.widths[0], self.places).relu()
        return self.head(rows.view(-1, self.widths[0], 8, 8))


def test_sizes_that_a_class_holds_follow_in_the_instance(tmp_path: Path) -> None:
    net = randomise(Listed())
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", filters=0.5).plan
    assert (net.widths, Listed.widths, Listed().widths) == ([8, 32], [16, 32], [16, 32])
    assert "places" not in vars(net)
    assert "widths" not in vars(original)
    assert relative_error(original, net, plan, X) < 1e-12
    infoprune.save(net, tmp_path / "pruned.pt")
    assert torch.equal(infoprune.load(tmp_path / "pruned.pt", Listed())(X), net(X))


def test_a_trace_leaves_nothing_of_a_class_in_the_instance() -> None:
    net = Listed()
    assert {group.name for group in infoprune.trace(net, X).prunable} == {"stem"}
    assert "widths" not in vars(net)
