"""The structure engine on the cases that other pruners get wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.errors import ConfigurationError, TraceError
from infoprune.structure import check_plan, register_rule
from infoprune.structure.tracing.rules import RULES
from infoprune.structure.validation.probe_plans import probe_plans
from tests.networks import randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Permuting(nn.Module):
    """1x1 convolution, an operator that moves channels, 1x1 convolution."""

    def __init__(self, operator: object) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.operator = operator
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operator(self.a(x)))  # type: ignore[operator]


def shuffle(y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


PERMUTING = {
    "view_transpose_shuffle": shuffle,
    "channel_shuffle": lambda y: torch.channel_shuffle(y, 2),
    "flip": lambda y: y.flip(1),
    "roll": lambda y: y.roll(1, 1),
    "roll_by_half": lambda y: y.roll(y.shape[1] // 2, 1),
    "advanced_index": lambda y: y[:, [3, 1, 2, 0, 7, 6, 5, 4]],
    "strided_slices": lambda y: torch.cat([y[:, ::2], y[:, 1::2]], 1),
    "swapped_cat": lambda y: torch.cat([y[:, 4:], y[:, :4]], 1),
    "swapped_cat_that_follows": lambda y: torch.cat([y[:, y.shape[1] // 2 :], y[:, : y.shape[1] // 2]], 1),
    "stack_flatten": lambda y: torch.stack([y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]], 2).flatten(1, 2),
}
PRUNED = set(PERMUTING) - {"roll", "advanced_index", "swapped_cat"}


@pytest.mark.parametrize("name", PERMUTING)
def test_permuting_operators_are_exact_or_frozen(name: str) -> None:
    net = randomise(Permuting(PERMUTING[name]))
    structure = infoprune.trace(net, X)
    prunable = {group.name: group for group in structure.prunable}
    assert ("a" in prunable) == (name in PRUNED)
    if name in PRUNED:
        for units in ([0], [1], [0, prunable["a"].size - 1]):
            original, shrunk = copy.deepcopy(net), copy.deepcopy(net)
            plan = structure.plan({"a": units})
            infoprune.shrink(shrunk, plan)
            assert shrunk.a.out_channels == shrunk.b.in_channels < 8  # type: ignore[union-attr]
            assert relative_error(original, shrunk, plan, X) < 1e-12
    else:
        assert all(group.reason for group in structure.groups)


class Shuffled(nn.Module):
    """Shuffled and halved again and again, an odd number of pairs: tying equal positions would bind all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 28, 1)
        self.branches = nn.ModuleList(nn.Conv2d(14, 14, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(28, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for branch in self.branches:
            a, b = y.chunk(2, 1)
            y = shuffle(torch.cat([a, branch(b)], 1))
        return self.head(y)


def test_shuffled_halves_lose_equally_many_and_stay_free() -> None:
    net = randomise(Shuffled())
    structure = infoprune.trace(net, X)
    trunk = [group for group in structure.prunable if any(slot.tensor == "head.weight" for slot in group.slots)]
    assert sum(group.size for group in trunk) > 1
    original, plan = copy.deepcopy(net), structure.plan({group.name: [0] for group in trunk})
    infoprune.shrink(net, plan)
    assert net.head.in_channels < 28  # type: ignore[operator]
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_part_taken_by_its_place_is_frozen_whichever_channels_the_trial_hits(cut: int) -> None:
    structure = infoprune.trace(randomise(Permuting(lambda y: torch.cat([y[:, cut:], y[:, :cut]], 1))), X)
    assert structure.group("a").frozen
    assert not structure.prunable


def test_one_channel_left_lets_pytorch_take_another_way() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 8, 3, groups=2)
            self.mixer = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            y = y + torch.ones(1, y.shape[1], 1, 1)
            return self.last(torch.einsum("bchw,cd->bdhw", y, self.mixer)).mean((2, 3))

    net = randomise(Mixing())
    structure = infoprune.trace(net, X)
    plan = structure.plan({"stem": [0, 1, 2, 3, 5]})
    check_plan(net, X, structure, plan)
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


@pytest.mark.parametrize("factor", [lambda c: c**-0.5, lambda c: 1 / torch.sqrt(torch.tensor(c))])
def test_a_factor_computed_from_a_width_freezes_it(factor: object) -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y * factor(y.shape[1]))  # type: ignore[operator]

    assert "factor is computed" in (infoprune.trace(Scaling(), X).group("a").reason or "")


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.conv(x)
        return self.head(x.flatten(1))


def test_structure_names_groups_layers_and_reasons() -> None:
    structure = infoprune.trace(Resnet(), X)
    assert [layer.name for layer in structure.layers] == ["stem", "conv", "head"]
    assert [group.name for group in structure.prunable] == ["stem"]
    group = structure.group("stem")
    slots = {(slot.tensor, slot.dim): slot for slot in group.slots}
    assert {
        ("stem.weight", 0),
        ("conv.weight", 0),
        ("conv.weight", 1),
        ("bn.running_var", 0),
        ("head.weight", 1),
    } <= set(slots)
    assert (slots["head.weight", 1].unit == torch.arange(8).repeat_interleave(64).numpy()).all()
    assert "reaches the model's output" in (structure.group("head").reason or "")
    assert "add" in structure.explain("conv")
    with pytest.raises(ConfigurationError, match=r"did you mean 'stem'"):
        structure.group("stm")
    with pytest.raises(ConfigurationError, match=r"nothing|no group"):
        structure.explain("nowhere")


def test_cost_is_the_models_own() -> None:
    net = Resnet()
    structure = infoprune.trace(net, X)
    assert structure.cost().params == sum(p.numel() for p in net.parameters())
    assert structure.cost().macs == (8 * 27 + 8 * 72) * 64 + 512 * 5
    plan = structure.plan({"stem": [0, 5]})
    assert structure.cost({"stem": 6}) == structure.cost_of(plan)
    infoprune.shrink(net, plan)
    assert infoprune.trace(net, X).cost() == structure.cost_of(plan)
    assert sum(c.macs for c in structure.layer_costs(plan).values()) == structure.cost_of(plan).macs


def test_frozen_patterns() -> None:
    structure = infoprune.trace(Resnet(), X, frozen=["con*"])
    assert "con*" in (structure.group("stem").reason or "")
    assert infoprune.trace(Resnet(), X, frozen=["head"]).prunable
    with pytest.raises(ConfigurationError, match=r"'hed' matches no module.*did you mean 'head'"):
        infoprune.trace(Resnet(), X, frozen=["hed"])


def test_nothing_changes_while_tracing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2))
    net(X)
    net.train()
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    parameters = list(net.parameters())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    infoprune.trace(net, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net] == [True, False, True, True, True]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not hasattr(net[0].weight, "_infoprune_flow")


def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(TraceError, match=r"0.weight is a lazy parameter"):
        infoprune.trace(nn.Sequential(nn.LazyConv2d(4, 3)), X)


def test_forward_that_fails_names_the_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(5, 4, 3)))
    with pytest.raises(TraceError, match=r"\(2, 3, 8, 8\) in module '1.0'"):
        infoprune.trace(net, X)


def test_control_flow_on_values_falls_back_to_real_tensors() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if x.mean().item() > -1e9:
                y = y + self.b(y)
            return self.c(y)

    net = randomise(Branching())
    structure = infoprune.trace(net, X)
    assert [group.name for group in structure.prunable] == ["a"]
    original, plan = copy.deepcopy(net), structure.plan({"a": [1, 2, 6]})
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, X) < 1e-12


def test_auxiliary_head_of_train_mode_is_coupled() -> None:
    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            y = self.a(x)
            return (self.b(y), self.aux(y)) if self.training else self.b(y)

    net = WithAuxiliary()
    infoprune.prune(net, X, "l1", filters=0.5)
    assert net.aux.in_channels == 4
    net.train()(X)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_stay_whole(layer: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.head = nn.Linear(6, 8), layer(8, 8, batch_first=True), nn.Linear(8, 4)
            self.mlp = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(F.relu(self.head(self.rnn(self.embed(x))[0])))

    net, x = randomise(Recurrent()), torch.randn(2, 5, 6)
    structure = infoprune.trace(net, x)
    assert [group.name for group in structure.prunable] == ["head"]
    original, plan = copy.deepcopy(net), structure.plan({"head": [0, 2]})
    infoprune.shrink(net, plan)
    assert relative_error(original, net, plan, x) < 1e-12


def test_transformer_keeps_attention_and_prunes_the_rest() -> None:
    net = randomise(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    x = torch.randn(2, 5, 16)
    structure = infoprune.trace(net, x)
    assert [group.name for group in structure.prunable] == ["linear1"]
    original, plan = copy.deepcopy(net), structure.plan({"linear1": [0, 9, 31]})
    infoprune.shrink(net, plan)
    assert infoprune.verify(original, net, plan, x).ok


def test_tied_weights_and_embeddings() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp = nn.Embedding(10, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            e = self.embed(tokens)
            return self.head(e + self.mlp(e))

    net, tokens = Tied().eval(), torch.randint(0, 10, (2, 5))
    original = copy.deepcopy(net)
    result = infoprune.prune(net, tokens, "l1", filters=0.5)
    assert net.head.weight is net.embed.weight
    assert net.embed.weight.shape == (10, 4)
    assert net.embed.embedding_dim == net.head.in_features == 4
    assert infoprune.verify(original, net, result.plan, tokens).ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layout_dtype_gradients_and_marks_are_kept(dtype: torch.dtype) -> None:
    net = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype).to(memory_format=torch.channels_last)
    )  # type: ignore[call-overload]
    net[0].weight.requires_grad_(False)
    net[2].weight._no_weight_decay = True  # type: ignore[attr-defined]
    calls = []
    net[2].weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.shape))
    infoprune.prune(net, X.to(dtype), "l1", filters=0.5)
    assert net[0].weight.shape == (4, 3, 3, 3)
    assert net[0].weight.dtype == dtype
    assert net[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not net[2].weight.is_contiguous()
    assert (net[0].weight.requires_grad, net[2].weight.requires_grad) == (False, True)
    assert net[2].weight._no_weight_decay
    net(X.to(dtype)).sum().backward()
    assert calls == [(4, 4, 3, 3)]


def test_pruning_twice_equals_pruning_once_with_the_joined_plan(tmp_path: object) -> None:
    original = randomise(Resnet())
    twice = copy.deepcopy(original)
    first = infoprune.prune(twice, X, "l1", filters=0.75).plan
    infoprune.save(twice, f"{tmp_path}/half_way.pt")
    twice = infoprune.load(f"{tmp_path}/half_way.pt", copy.deepcopy(original))
    second = infoprune.prune(twice, X, "l1", filters=0.5).plan
    once = copy.deepcopy(original)
    infoprune.shrink(once, first.then(second))
    assert once.stem.out_channels == 3
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    assert relative_error(original, twice, first.then(second), X) < 1e-12


def test_a_rule_of_the_users_own() -> None:
    library = torch.library.Library("infoprune_test", "DEF")
    library.define("negate(Tensor x) -> Tensor")
    library.impl("negate", lambda x: -x, "CompositeExplicitAutograd")
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net.forward = lambda x: net[2](torch.ops.infoprune_test.negate(net[0](x)))  # type: ignore[method-assign]
    assert "no rule" in (infoprune.trace(net, X).group("0").reason or "")

    @register_rule("infoprune_test::negate")
    def negate(op, args, kwargs, outs):  # type: ignore[no-untyped-def]
        op.label(outs[0], infoprune.structure.labels_of(args[0]).axes)

    try:
        assert not infoprune.trace(net, X).group("0").frozen
        for wrong in ([None, np.arange(3), None, None], [None, None]):
            register_rule("infoprune_test::negate")(lambda op, args, kwargs, outs, axes=wrong: op.label(outs[0], axes))
            with pytest.raises(TraceError, match=r"the rule of infoprune_test.negate .* axes"):
                infoprune.trace(net, X)
    finally:
        del RULES["infoprune_test.negate"]


def test_a_copied_structure_makes_the_same_plans() -> None:
    structure = infoprune.trace(nn.Sequential(Permuting(shuffle), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)), X)
    assert list(probe_plans(copy.deepcopy(structure))) == list(probe_plans(structure))
