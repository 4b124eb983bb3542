"""Cuts are proven before they are made, and `verify` compares whatever models return."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.callbacks import FilterPruning
from infoprune.errors import VerificationError
from infoprune.structure import labels_of
from infoprune.structure.tracing.rules import RULES, rule
from infoprune.structure.verify import check_exact

X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(3))


@torch.library.custom_op("infoprune_tests::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    """The channels in the opposite order."""
    return x.flip(1)


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


turned.register_autograd(lambda ctx, gradient: gradient.flip(1))


@pytest.fixture
def wrong_rule() -> Iterator[None]:
    """A rule that forgets that the operator turns the channels around."""
    rule("infoprune_tests::turned")(lambda op, args, kwargs, outs: op.label(outs[0], labels_of(args[0]).axes))
    yield
    del RULES["infoprune_tests.turned"]


class Turning(nn.Module):
    """Reads the channels of one layer in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.second(turned(torch.relu(self.first(x))))))
        return y


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_wrong_cut_is_refused_and_nothing_changes(wrong_rule: None) -> None:
    torch.manual_seed(0)
    net = Turning()
    optimizer = torch.optim.Adam(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    before, first = state(net), net.first.weight
    moments = {id(p): s["exp_avg"].clone() for p, s in optimizer.state.items()}
    with pytest.raises(VerificationError, match=r"starts in 'second'.*verify=False"):
        infoprune.prune(net, X, "l1", filters=0.5, round_to=1, optimizers=optimizer)
    assert net.first.weight is first
    assert net.training
    assert_same(net, before)
    assert all(torch.equal(s["exp_avg"], moments[id(p)]) for p, s in optimizer.state.items())
    assert infoprune.plan_of(net).is_empty


def test_verification_can_be_switched_off(wrong_rule: None) -> None:
    net = Turning()
    infoprune.prune(net, X, "l1", filters=0.5, round_to=1, verify=False)
    assert net.first.out_channels == 4


class Fit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Turning()

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0, momentum=0.9)


def fit(tmp_path: Path, **options: object) -> Fit:
    module = Fit()
    pruning = FilterPruning("l1", filters=0.5, round_to=1, schedule=1, module="net", example_inputs=X, **options)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=2, default_root_dir=tmp_path, logger=False, enable_checkpointing=False, callbacks=[pruning],
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(list(X), batch_size=2))  # type: ignore[arg-type]
    return module


def test_an_event_refuses_a_wrong_cut(wrong_rule: None, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="'second'"):
        fit(tmp_path)
    assert fit(tmp_path, verify=False).net.first.out_channels == 4


def cut(net: nn.Module, x: Tensor) -> tuple[nn.Module, infoprune.PruningPlan]:
    structure = infoprune.trace(net, x)
    plan = structure.plan({group.name: range(group.size // 2) for group in structure.prunable})
    original = copy.deepcopy(net)
    infoprune.shrink(net, plan)
    return original, plan


class Waves(nn.Module):
    """Weights frequencies with complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 3, 1)
        self.gain = nn.Parameter(torch.randn(3, 9, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.irfft(torch.fft.rfft(x) * self.gain, n=16)
        z: Tensor = self.narrow(torch.relu(self.widen(y)))
        return z


def test_complex_parameters_are_compared() -> None:
    net, x = Waves(), torch.randn(2, 3, 16)
    original, plan = cut(net, x)
    assert not plan.is_empty
    assert infoprune.verify(original, net, plan, x).max_error < 1e-12
    with torch.no_grad():
        net.gain.mul_(1.001)
    assert infoprune.verify(original, net, plan, x).max_error > 1e-5


class Mixed(nn.Module):
    """Returns classes, a mask and scores that hold infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.bias_of_wrong = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.last(torch.relu(self.first(x))) + self.bias_of_wrong
        return {
            "classes": scores.argmax(1),
            "mask": scores > 0,
            "scores": scores.masked_fill(scores < 0, -float("inf")),
        }


def test_classes_masks_and_shared_infinities_are_compared() -> None:
    net = Mixed()
    original, plan = cut(net, X)
    found = infoprune.verify(original, net, plan, X)
    assert found.ok
    assert len(found.errors) == 3
    net.bias_of_wrong = 0.5
    found = infoprune.verify(original, net, plan, X)
    assert found.errors[1] == found.errors[2] == float("inf")


class Noisy(nn.Module):
    """Draws as many random numbers as it has channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(x)
        y: Tensor = self.last(self.mean(x) + torch.randn_like(spread) * spread)
        return y


def test_random_numbers_do_not_look_like_an_error() -> None:
    net, x = Noisy(), torch.randn(3, 6)
    assert infoprune.prune(net, x, "l1", filters=0.5, round_to=1).after.params < 100
    assert net.mean.out_features == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_decided_in_float64(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype)
    infoprune.prune(net, X.to(dtype), "l1", filters=0.5, round_to=1)
    assert net[0].weight.dtype is dtype


def test_recurrent_layers_take_part_in_the_proof() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.narrow = nn.Linear(5, 12), nn.Linear(12, 6)
            self.lstm = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.lstm(self.narrow(torch.relu(self.widen(x))))[0]
            return y

    net, x = Recurrent(), torch.randn(2, 7, 5)
    original, plan = cut(net, x)
    assert infoprune.verify(original, net, plan, x).max_error < 1e-12
    check_exact(original, plan, x)


def test_what_float32_cannot_decide_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    plan = infoprune.trace(net, torch.randn(3, 6)).plan({"0": range(8)})
    monkeypatch.setattr(sys.modules["infoprune.structure.verify"], "FLOAT32_TOLERANCE", -1.0)
    check_exact(net, plan, torch.randn(3, 6))


def test_zeros_as_example_are_no_proof_so_random_numbers_take_their_place(wrong_rule: None) -> None:
    torch.manual_seed(0)
    net = Turning()
    for layer in (net.first, net.second, net.last):
        layer.bias = None
    with pytest.raises(VerificationError):
        infoprune.prune(net, torch.zeros(1, 3, 10, 10), "l1", filters=0.5, round_to=1)


def test_trace_and_prune_say_the_same_of_groups_that_a_plan_leaves_alone() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(3, 9, 1)
            self.d = nn.Conv2d(9, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.relu(self.a(x)).view(len(x), 6, 10, 10)) + self.d(self.c(x))
            return y

    only = {"name": "per_layer", "ratios": {"c": 0.5}}
    found = infoprune.prune(Fixed(), X, "l1", allocation=only, round_to=1).structure
    traced = infoprune.trace(Fixed(), X)
    assert {g.name: g.frozen for g in found.groups} == {g.name: g.frozen for g in traced.groups}


def test_models_that_return_objects_without_tensors_are_refused() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(size=self.last(self.first(x)).shape)

    with pytest.raises(infoprune.errors.InfopruneError):
        infoprune.prune(Nothing(), torch.randn(2, 3), "l1", filters=0.5)


SINGULAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quotient": lambda a, b, scale: torch.addcdiv(a, b, scale.abs() + 1),
    "softplus": lambda a, b, scale: F.softplus(a * scale.exp()) / scale.exp() + b,
    "remainder": lambda a, b, scale: torch.remainder(a, scale.abs() + 1) + b.fmod(scale.abs() + 1),
    "root": lambda a, b, scale: a.abs().rsqrt() + b.abs().log(),
}


class Divided(nn.Module):
    """Divides by something that each channel has, which is zero where the channel is masked."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.scale, self.function = nn.Parameter(torch.randn(8, 1, 1)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x), self.second(x), self.scale))


@pytest.mark.parametrize("name", SINGULAR)
def test_no_number_where_a_channel_is_masked_is_no_error(name: str) -> None:
    net, x = Divided(SINGULAR[name]).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    original = copy.deepcopy(net)
    result = infoprune.prune(net, x, "l1", filters=0.5)
    assert net.head.in_channels == 4
    assert infoprune.verify(original, net, result.plan, x).errors[0] < 1e-12


class StateSpace(nn.Module):
    """The convolution kernel of a diagonal state-space layer, of complex numbers computed from parameters."""

    def __init__(self, width: int = 8, order: int = 4) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(5, width), nn.Linear(width, 3)
        self.step, self.out = nn.Parameter(torch.rand(width) - 3), nn.Parameter(torch.randn(width, order, 2))
        self.decay = nn.Parameter(torch.zeros(width, order))
        self.turn = nn.Parameter(torch.arange(order).float().repeat(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x).mT
        poles = -torch.exp(self.decay) + 1j * self.turn
        steps = poles * self.step.exp()[:, None]
        weights = torch.view_as_complex(self.out) * (torch.exp(steps) - 1) / poles
        kernel = torch.einsum("hn,hnl->hl", weights, torch.exp(steps[..., None] * torch.arange(x.shape[-1]))).real
        doubled = 2 * x.shape[-1]
        product = torch.fft.rfft(x, n=doubled) * torch.fft.rfft(kernel, n=doubled)
        return self.decode(torch.fft.irfft(product, n=doubled)[..., : x.shape[-1]].mT)


def test_no_complex_number_where_a_channel_is_masked_is_no_error() -> None:
    net, x = StateSpace().eval(), torch.randn(2, 12, 5)
    original = copy.deepcopy(net)
    result = infoprune.prune(net, x, "l1", filters=0.5)
    assert net.decode.in_features == 4
    assert infoprune.verify(original, net, result.plan, x).ok


class Single(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("expected scalar type Float but found Double")
        return x.relu()


def test_a_model_whose_code_knows_float32_only_is_compared_in_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Single.apply(self.first(x)))

    net, x = Net().eval(), torch.randn(4, 3)
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, x, "l1", filters=0.5).plan
    verification = infoprune.verify(original, net, plan, x)
    assert verification.ok
    assert verification.tolerance == 1e-5
    net.head.bias.data += 1e-2
    assert not infoprune.verify(original, net, plan, x).ok


def test_inputs_that_hold_nan_are_named_where_nothing_can_be_compared() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 8, 8)
    x[..., 3] = torch.nan
    with pytest.raises(VerificationError, match="the example inputs hold NaN"):
        infoprune.prune(net, x, "l1", filters=0.5)
    assert net[0].out_channels == 8
