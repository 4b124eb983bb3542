"""Averages that projects keep by hand, outside of the model, follow a cut; wrapped optimizers have their state cut."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.callbacks.engine.held_copies import held_copies, put_back
from infoprune.structure import PruningPlan
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class AverageOfModule(pl.Callback):
    """Keeps a deep copy of the network, and lets validation use it."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = copy.deepcopy(pl_module.net).requires_grad_(False)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        new = pl_module.net.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[name], 0.1)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.trained, pl_module.net = pl_module.net, self.average

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.net = self.trained

    def shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self.average.parameters()]


class AverageByName(pl.Callback):
    """Keeps a dict of tensors."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * parameter.detach()

    def shapes(self) -> list[torch.Size]:
        return [tensor.shape for tensor in self.shadow.values()]


class Shadows:
    """Keeps a list of tensors in the order of the parameters, in an object of its own."""

    def __init__(self, parameters: Any) -> None:
        self.shadows = [parameter.detach().clone() for parameter in parameters]

    def update(self, parameters: Any) -> None:
        for shadow, parameter in zip(self.shadows, parameters, strict=True):
            shadow.sub_(0.1 * (shadow - parameter.detach()))


class AverageByOrder(pl.Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = Shadows(pl_module.net.parameters())

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.average.update(pl_module.net.parameters())

    def shapes(self) -> list[torch.Size]:
        return [tensor.shape for tensor in self.average.shadows]


@pytest.mark.parametrize("kind", [AverageOfModule, AverageByName, AverageByOrder])
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_an_average_in_a_callback_follows(kind: Any, first: bool) -> None:
    module, average = TinyModule(), kind()
    callbacks = [average, pruning((1,))] if first else [pruning((1,)), average]
    trainer(*callbacks, epochs=2).fit(module, loader(), loader())
    assert widths(module.net) != widths(TinyNet())
    assert average.shapes() == [parameter.shape for parameter in module.net.parameters()]


@pytest.mark.parametrize("updated", [True, False])
def test_a_copy_behind_an_attribute_follows_if_it_is_updated(updated: bool) -> None:
    """In a list, where Lightning does not see it: a teacher stays whole, an average follows."""

    class Hidden(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [copy.deepcopy(self.net)]

        @torch.no_grad()
        def on_train_batch_end(self, *_: Any) -> None:
            for old, new in zip(self.hidden[0].parameters(), self.net.parameters() if updated else (), strict=updated):
                old.lerp_(new, 0.1)

    module = Hidden()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert widths(module.hidden[0]) == widths(module.net if updated else TinyNet())


@pytest.mark.parametrize("updated", [True, False], ids=["average", "first weights"])
@pytest.mark.parametrize("kind", [dict, list])
def test_tensors_that_the_model_keeps_follow_if_they_are_updated(kind: Any, updated: bool) -> None:
    """An average follows, in a dict or a list that is made anew each step; a note of the first weights stays whole."""

    class Keeps(TinyModule):
        def on_fit_start(self) -> None:
            self.kept = self.of_parameters()

        def of_parameters(self) -> Any:
            named = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
            return named if kind is dict else list(named.values())

        def on_train_batch_end(self, *_: Any) -> None:
            new = self.of_parameters()
            if updated and kind is dict:
                self.kept = {name: 0.9 * old + 0.1 * new[name] for name, old in self.kept.items()}
            elif updated:
                self.kept = [0.9 * old + 0.1 * tensor for old, tensor in zip(self.kept, new, strict=True)]

    module = Keeps()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    kept = module.kept.values() if kind is dict else module.kept
    expected = (module if updated else TinyModule()).parameters()
    assert widths(module.net) != widths(TinyNet())
    assert [tensor.shape for tensor in kept] == [parameter.shape for parameter in expected]


def test_tensors_that_are_held_are_put_back_after_an_error() -> None:
    module, average = TinyModule(), AverageByName()
    run = trainer(average)
    average.on_train_start(run, module)
    plan = PruningPlan({"net.stem.weight": {0: (1,)}}, {"net.stem.weight": tuple(module.net.stem.weight.shape)})
    (held,) = held_copies(run, module, plan)

    def fails() -> None:
        with put_back([held]):
            held.shrink(plan, {}, None)
            assert average.shadow["net.stem.weight"].shape[0] == module.net.stem.weight.shape[0] - 1
            raise MemoryError

    with pytest.raises(MemoryError):
        fails()
    assert average.shadow["net.stem.weight"].shape == module.net.stem.weight.shape


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware minimization: shares its parameter groups with an optimizer that it wraps."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        loss = torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["old"] = parameter.detach().clone()
                    parameter.data.add_(parameter.grad, alpha=group["rho"])
        torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = self.state[parameter]["old"]
        self.base_optimizer.step()
        return loss


def test_the_optimizer_that_another_wraps_is_cut_too() -> None:
    module = TinyModule()
    module.make_optimizer = Sharp
    run = trainer(pruning((1,)), epochs=2)
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    own = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} <= own
    for parameter in module.net.parameters():
        assert optimizer.base_optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


def test_a_wrapper_that_shares_the_state_of_what_it_wraps() -> None:
    """Lookahead holds the very state of its inner optimizer."""
    net = TinyNet()
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    outer = torch.optim.SGD(net.parameters(), lr=0.1)
    outer.optimizer, outer.state = inner, inner.state
    net(torch.randn(2, 3, 16, 16)).sum().backward()
    inner.step()
    infoprune.prune(net, torch.randn(2, 3, 16, 16), "l1", macs=0.5, optimizers=[outer])
    assert set(inner.state) == set(net.parameters())
    assert all(inner.state[p]["momentum_buffer"].shape == p.shape for p in net.parameters())


class MeanTeacher(TinyModule):
    """The teacher labels in training, and is what forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(batch[0])
        student = self.net(batch[0])
        return nn.functional.mse_loss(student, wanted) + nn.functional.cross_entropy(student, batch[1])

    @torch.no_grad()
    def on_before_zero_grad(self, *_: Any) -> None:
        for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            old.lerp_(new, 0.1)


@pytest.mark.parametrize("everything", [True, False], ids=["all-in-the-optimizer", "only-the-trained"])
def test_a_mean_teacher_that_both_modes_run_follows(everything: bool) -> None:
    module = MeanTeacher()
    if not everything:
        module.make_optimizer = lambda _: torch.optim.SGD(module.net.parameters(), lr=0.1)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.teacher) == widths(module.net) != widths(TinyNet())


class Watched(TinyModule):
    """Hooks around the transfer make images out of bytes, and the step takes its labels out of the batch."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return {"images": images.permute(0, 2, 3, 1).contiguous(), "labels": labels}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "images": batch["images"].permute(0, 3, 1, 2)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["images"]), batch.pop("labels"))


def test_batches_pass_the_hooks_around_their_transfer(caplog: pytest.LogCaptureFixture) -> None:
    """The default allocation measures on them: no fallback to the rule of thumb."""
    module = Watched()
    trainer(pruning((1,), allocation="information_loss", macs=0.5), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert "could not be measured" not in caplog.text
