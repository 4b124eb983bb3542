"""Plans that cannot be, failures in the middle of a cut, and what is left as it was."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import ConfigurationError, PlanError, SurgeryError, TraceError
from infoprune.structure.validation import dry_run as dry_runs
from infoprune.structure.validation import traced_model
from tests.test_structure import Resnet

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def state_of(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor.clone()) for name, tensor in net.state_dict().items()]


def unchanged(net: nn.Module, before: list[tuple[str, Tensor]]) -> bool:
    now = list(net.state_dict().items())
    return len(now) == len(before) and all(
        a == c and torch.equal(b, d) for (a, b), (c, d) in zip(now, before, strict=True)
    )


def test_plans_that_cannot_be() -> None:
    structure = infoprune.trace(Resnet(), X)
    for units, message in (([8], "units 0 to 7.*unit 8"), ([1, 1], "twice"), (range(8), "all 8 units")):
        with pytest.raises(PlanError, match=message):
            structure.plan({"stem": list(units)})
    with pytest.raises(PlanError, match=r"'head' is frozen: reaches"):
        structure.plan({"head": [0]})


def test_plan_of_another_model_is_refused() -> None:
    net = Resnet()
    plan = infoprune.trace(net, X).plan({"stem": [0]})
    other = nn.Sequential(nn.Conv2d(3, 8, 3))
    before = state_of(other)
    with pytest.raises(PlanError, match=r"'stem.weight', which this model does not have"):
        infoprune.shrink(other, plan)
    assert unchanged(other, before)
    infoprune.shrink(net, plan)
    before = state_of(net)
    with pytest.raises(PlanError, match=r"stem.weight has shape \(7, 3, 3, 3\), the plan expects \(8, 3, 3, 3\)"):
        infoprune.shrink(net, plan)
    assert unchanged(net, before)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    seen: list[bool] = []

    class Broken(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(gc.isenabled())
            raise ValueError("broken")

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        infoprune.trace(nn.Conv2d(3, 4, 1), X)
        assert gc.isenabled() is enabled
        with pytest.raises(TraceError, match="broken"):
            infoprune.trace(Broken(3, 4, 1), X)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False] * len(seen) != []


def test_failure_in_the_middle_of_shrinking_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Resnet().train()
    optimizer = torch.optim.AdamW(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    plan = infoprune.trace(net, X).plan({"stem": [0, 1]})
    before, parameters = state_of(net), list(net.parameters())
    states = copy.deepcopy(optimizer.state_dict())

    def fail(*_: object) -> None:
        raise RuntimeError("simulated")

    monkeypatch.setattr("infoprune.structure.surgery.attributes.rewrite", fail)
    with pytest.raises(RuntimeError, match=r"simulated"):
        infoprune.shrink(net, plan, [optimizer])
    assert unchanged(net, before)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    after = optimizer.state_dict()
    assert all(
        torch.equal(states["state"][i][k], after["state"][i][k]) for i in states["state"] for k in states["state"][i]
    )
    assert net.stem.out_channels == 8


def test_optimizer_state_of_unknown_shape_is_refused() -> None:
    net = Resnet()
    optimizer = torch.optim.Adafactor(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    before = state_of(net)
    with pytest.raises(SurgeryError, match=r"Adafactor.*stem.weight|Adafactor"):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=[optimizer])
    assert unchanged(net, before)


def test_a_parametrization_without_rules_is_frozen_by_name() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.utils.parametrizations.orthogonal(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 4, 1)
    )
    structure = infoprune.trace(net, X)
    assert not structure.prunable
    assert any(
        "linalg_matrix_exp has no rule (linalg_matrix_exp in 1.param" in (g.reason or "") for g in structure.groups
    )


class _Chooses(nn.Module):
    """Takes another way where a layer is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.shape[1] > 6 else torch.tanh(self.second(x))


def test_a_whole_call_runs_its_own_plan_dry_and_falls_back_on_probe_plans() -> None:
    """A mild cut goes the model's usual way and is made; a deep one does not, so its layer stays, as `trace` says."""
    reason = infoprune.trace(_Chooses(), X).group("first").reason
    assert reason is not None
    assert "which operators it runs depends on its width (nothing, aten.tanh)" in reason
    mild = infoprune.prune(_Chooses(), X, "l1", filters=0.875)
    assert mild.plan.shape_after("first.weight")[0] == 7
    with pytest.raises(ConfigurationError, match=r"depends on its width \(nothing, aten.tanh\)"):
        infoprune.prune(_Chooses(), X, "l1", filters=0.5)


class _Asserts(nn.Module):
    """Checks the width of its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[1] != 8:
            raise ValueError("eight channels, please")
        return self.head(self.third(self.second(x).relu()).relu())


class _Checks(nn.Module):
    """Checks two widths at once."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        if left.shape[1] * right.shape[1] != 24:
            raise ValueError("24, please")
        return x + self.out(torch.cat([left, right], 1))


def test_what_is_at_fault_in_one_module_is_so_in_its_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    dry_run = dry_runs.dry_run
    for module in (dry_runs, traced_model):
        monkeypatch.setattr(module, "dry_run", lambda *args: runs.append(args) or dry_run(*args))
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(_Checks() for _ in range(6)), nn.Conv2d(8, 2, 1))
    structure = infoprune.trace(net, X)
    assert "24, please" in str(structure.group("6.left").reason)
    assert len(runs) < 12


class _OneHead(nn.Module):
    """Attention of one head, with a factor that is computed from the width of its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)


@pytest.mark.parametrize(
    ("make", "frozen", "free", "reason"),
    [(_Asserts, "first", ["second", "third"], "eight channels"), (_OneHead, "q", ["v"], "a factor is computed")],
)
def test_only_the_group_at_fault_is_frozen(
    make: Callable[[], nn.Module], frozen: str, free: list[str], reason: str
) -> None:
    result = infoprune.prune(make().eval(), X, "l1", filters=0.5)
    assert [group.name for group in result.structure.prunable] == free
    assert reason in str(result.structure.group(frozen).reason)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (torch.zeros(1, 0, 8), r"\(1, 0, 8\)"),
        ((torch.zeros(0, 5, 8),), r"\(0, 5, 8\)"),
        (infoprune.Examples(torch.zeros(1, 5, 8), torch.zeros(1, 0, 8)), r"\(1, 0, 8\)"),
    ],
)
def test_an_empty_first_input_is_refused(inputs: Any, shape: str) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(TraceError, match=f"of shape {shape} hold no example: .*dimension of size 0"):
        infoprune.trace(net, inputs)


def test_an_empty_further_input_keeps_the_channels_that_are_reshaped_in_it() -> None:
    class WithBoxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.boxes, self.head = nn.Conv2d(3, 8, 1), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            made = self.boxes(boxes)[:, None].expand(-1, 3, -1).reshape(-1, 8)
            return self.stem(x).mean((2, 3)), self.head(made)

    structure = infoprune.trace(WithBoxes(), (X, torch.zeros(0, 4)))
    assert "in a tensor without entries" in str(structure.group("boxes").reason)
