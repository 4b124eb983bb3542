"""Attention: whole heads go, with the width that comes in where the code ties the two; numbers in modules follow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.structure.tracing.relabel import Recording
from tests.alive import alive
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class PatchNet(nn.Module):
    """Patches, a class token, a position table, one attention block and a head, with sizes written down as in ViT."""

    def __init__(self, attention: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.hidden_dim = width
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.norm = nn.LayerNorm(width)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).reshape(len(x), self.hidden_dim, -1).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        tokens = tokens + self.attention(self.norm(tokens))
        return self.head((tokens + self.mlp(tokens))[:, 0])


class PyTorchs(nn.Module):
    """PyTorch's own multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class TiedToInput(nn.Module):
    """The head width is what the width that comes in leaves for each head, and sets the scale (Swin)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, 17, 17))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = (q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1) + self.bias
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Free(nn.Module):
    """Heads of a written-out width that nothing ties to the width that comes in (timm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = heads, 7
        self.qkv, self.proj = nn.Linear(width, 3 * 7 * heads), nn.Linear(7 * heads, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class WrittenOut(Free):
    """The width of all heads together is a number of its own too (ViT, LeViT, TinyViT in timm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.all_heads = 7 * heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.all_heads))


def prune_one(net: nn.Module, name: str, units: list[int]) -> tuple[nn.Module, infoprune.PruningPlan]:
    original = copy.deepcopy(net)
    plan = infoprune.trace(net, X).plan({name: units})
    infoprune.shrink(net, plan)
    return original, plan


class Both(nn.Module):
    """Two networks, each with attention of its own kind."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = PatchNet(first), PatchNet(second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) + self.second(x)
        return out


@pytest.mark.parametrize("kinds", [(TiedToInput, PyTorchs), (PyTorchs, TiedToInput)])
def test_heads_of_one_kind_stay_tied_when_those_of_another_are_found(kinds: tuple[Any, Any]) -> None:
    net = randomise(Both(kinds[0](24, 3), kinds[1](24, 4)))
    structure = infoprune.trace(net, X)
    sizes = {group.name: group.size for group in structure.prunable}
    assert sizes == {"first.patches": 3, "first.mlp.0": 40, "second.patches": 4, "second.mlp.0": 40}
    original, plan = copy.deepcopy(net), structure.plan({"first.patches": [1], "second.patches": [0, 2]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize(("kind", "heads"), [(PyTorchs, 3), (PyTorchs, 4), (TiedToInput, 3), (TiedToInput, 6)])
def test_whole_heads_go_with_the_width_that_comes_in(kind: type[nn.Module], heads: int) -> None:
    net = randomise(PatchNet(kind(24, heads)))  # type: ignore[call-arg]
    structure = infoprune.trace(net, X)
    assert {group.name: group.size for group in structure.prunable} == {"patches": heads, "mlp.0": 40}
    original, plan = prune_one(net, "patches", [0, heads - 1])
    width = 24 - 2 * 24 // heads
    assert net.hidden_dim == net.head.in_features == net.positions.shape[2] == width  # type: ignore[union-attr]
    assert next(m.num_heads for m in net.modules() if hasattr(m, "num_heads")) == heads - 2
    assert relative_error(original, net, plan, X) < 1e-12


def test_heads_that_nothing_ties_go_alone() -> None:
    net = randomise(PatchNet(Free(24, 4)))
    structure = infoprune.trace(net, X)
    assert {group.name: group.size for group in structure.prunable} == {"patches": 24, "attention.qkv": 4, "mlp.0": 40}
    original, plan = prune_one(net, "attention.qkv", [1])
    assert net.attention.num_heads == 3  # type: ignore[union-attr]
    assert net.attention.proj.in_features == 21  # type: ignore[union-attr]
    assert relative_error(original, net, plan, X) < 1e-12


def test_the_width_of_all_heads_follows_where_it_is_written_out() -> None:
    """A reshape fails before it runs any operator, and what it asked for is still found; in every block at once."""
    net = randomise(PatchNet(nn.Sequential(*(WrittenOut(24, 4) for _ in range(3)))))
    structure = infoprune.trace(net, X)
    sizes = {group.name: group.size for group in structure.prunable}
    assert [sizes[f"attention.{block}.qkv"] for block in range(3)] == [4, 4, 4]
    original, plan = prune_one(net, "attention.1.qkv", [0, 3])
    assert [block.all_heads for block in net.attention] == [28, 14, 28]  # type: ignore[union-attr]
    assert relative_error(original, net, plan, X) < 1e-12


def test_rewritten_numbers_are_saved_loaded_and_joined(tmp_path: Path) -> None:
    net = randomise(PatchNet(TiedToInput(24, 6)))
    fresh, again = copy.deepcopy(net), copy.deepcopy(net)
    _, first = prune_one(net, "patches", [1])
    _, second = prune_one(net, "patches", [0, 2])
    infoprune.save(net, tmp_path / "net.pt")
    infoprune.load(tmp_path / "net.pt", fresh)
    assert fresh.hidden_dim == 12  # type: ignore[comparison-overlap]
    assert torch.equal(fresh(X), net(X))
    joined = infoprune.PruningPlan.from_json(first.then(second).to_json())
    infoprune.shrink(again, joined)
    assert torch.equal(again(X), net(X))


def test_a_number_that_does_not_explain_the_size_is_left_alone() -> None:
    class Written(PatchNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(len(x), 5) + self.patches(x).reshape(len(x), 24, -1).mean()

    net = randomise(Written(Free(24, 4)))
    structure = infoprune.trace(net, X)
    assert structure.group("patches").frozen
    original, plan = prune_one(net, "attention.qkv", [1])
    assert net.hidden_dim == 24
    assert relative_error(original, net, plan, X) < 1e-12


def test_bound_numbers_of_another_model_are_refused() -> None:
    net = randomise(PatchNet(TiedToInput(24, 6)))
    plan = infoprune.trace(net, X).plan({"patches": [1]})
    net.hidden_dim = 25
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(infoprune.errors.PlanError, match="hidden_dim is 25, the plan expects 24"):
        infoprune.shrink(net, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Halves(nn.Module):
    """Splits after a number of its own; both halves are of that size, and a layer is used in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.stem = nn.Conv2d(3, 8, 3)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.auxiliary = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        left, right = y.split([self.width, y.shape[1] - self.width], dim=1)
        out = self.left(left) + self.right(right)
        return out + self.auxiliary(y) if self.training else out


def test_a_number_that_explains_several_results_of_several_passes_is_rewritten() -> None:
    net = randomise(Halves())
    original, plan = prune_one(net, "stem", [1])
    assert net.width == plan.shape_after("left.weight")[1] < 4
    assert relative_error(original, net, plan, X) < 1e-12


class Reshaped(TiedToInput):
    """A result takes another shape in place for a while, so that it does not tell later how it was."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x).unsqueeze_(1)
        return out.squeeze_(1) * 2


@pytest.mark.parametrize(("kind", "replayed"), [(TiedToInput, True), (Free, True), (Reshaped, False)])
def test_labelling_anew_says_what_running_again_says(
    kind: type[nn.Module], replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once heads have been found, the first pass's operators get their labels anew, where they are as they were."""
    net = PatchNet(kind(24, 4))
    answers = []
    replay = Recording.replay

    def watched(*args: Any) -> Any:
        answers.append(replay(*args))
        return answers[-1]

    monkeypatch.setattr(Recording, "replay", watched)
    anew = infoprune.trace(net, X)
    monkeypatch.setattr(Recording, "is_unchanged", lambda _: False)
    again = infoprune.trace(net, X)
    assert len(answers) == replayed
    assert np.array_equal(anew.component, again.component)
    assert [(g.name, g.size, g.reason) for g in anew.groups] == [(g.name, g.size, g.reason) for g in again.groups]
    assert [(a.path, a.labels.tolist()) for a in anew.attributes] == [
        (a.path, a.labels.tolist()) for a in again.attributes
    ]
    assert anew.attributes
    assert anew.cost() == again.cost()
    for one, other in zip(anew.records, again.records, strict=True):
        assert (str(one), one.scalars) == (str(other), other.scalars)
        assert (one.splits, one.choices) == (other.splits, other.choices)


@pytest.mark.parametrize("net", [PatchNet(TiedToInput(24, 4)), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))])
def test_a_structure_holds_no_tensor_of_the_passes(net: nn.Module) -> None:
    infoprune.trace(net, X)
    before = alive()["tensors"]
    structure = infoprune.trace(net, X)
    assert alive()["tensors"] <= before
    assert structure.prunable


@pytest.mark.parametrize("share", [0.75, 0.5])
def test_an_encoder_with_a_padding_mask_runs_whatever_number_of_heads_stays(share: float) -> None:
    """With an even number of heads it packs padded inputs into nested tensors, with an odd one it cannot."""
    net = randomise(nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2))
    x, padding = torch.randn(2, 6, 32), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encoder, self.head = nn.Linear(32, 32), net, nn.Linear(32, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding))

    model = Net().eval()
    infoprune.prune(model, (x, padding), "l1", filters=share, round_to=1)
    assert net.layers[0].self_attn.num_heads == 4 * share
    assert net.use_nested_tensor == (share == 0.5)
    trained = model(x, padding)
    with torch.no_grad():
        assert torch.allclose(model(x, padding)[~padding], trained[~padding], atol=1e-5)
