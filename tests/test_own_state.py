"""State of a project's own in a fit: it follows a cut, or the fit is refused before its first batch; runs undo it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from infoprune.errors import SurgeryError
from tests.tiny import CLASSES, TinyModule, loader, pruning, trainer, widths


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, CLASSES))


class OwnOptimizer(TinyModule):
    """Steps an optimizer and a scheduler that Lightning does not know."""

    def __init__(self) -> None:
        super().__init__(net=net())
        self.automatic_optimization = False
        self.own = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)
        self.schedules = {"rate": StepLR(self.own, 4)}
        self.counts: list[int] = []

    def training_step(self, batch: Any, index: int) -> None:
        loss = self.loss(batch)
        self.own.zero_grad(set_to_none=False)
        loss.backward()
        self.own.step()
        self.schedules["rate"].step()
        self.counts.append(self.schedules["rate"].last_epoch)

    def configure_optimizers(self) -> None:
        return None


class Trained(pl.Callback):
    """Tells which epochs have changed the weights."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.before = [parameter.detach().clone().flatten()[0] for parameter in module.parameters()]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = [parameter.detach().flatten()[0] for parameter in module.parameters()]
        if not any(map(torch.equal, self.before, now)):
            self.epochs.append(trainer.current_epoch)


def test_an_optimizer_that_the_module_steps_itself_trains_the_cut_model() -> None:
    module, trained = OwnOptimizer(), Trained()
    trainer(pruning((1,)), trained, epochs=2).fit(module, loader())
    assert widths(module)[0] < 8
    assert trained.epochs == [0, 1]
    assert module.counts == [*range(1, 7)], "no event has moved the scheduler"
    ((_, state),) = [(p, s) for p, s in module.own.state.items() if p is module.net[0].weight]
    assert state["momentum_buffer"].shape == module.net[0].weight.shape


class ByParameter(TinyModule):
    """Keeps a tensor for each parameter under the parameter itself, and uses it in one of three places."""

    def __init__(self, where: str) -> None:
        super().__init__(net=net())
        self.where = where
        self.momentum = {parameter: torch.zeros_like(parameter) for parameter in self.parameters()}

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss(batch)
        if self.where == "training_step":
            loss = loss + sum((self.momentum[p] * p).sum() for p in self.parameters())
        return loss

    def _use(self) -> None:
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(self.momentum[parameter].mul_(0.9).add_(parameter.grad))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.where == "on_before_optimizer_step":
            self._use()


@pytest.mark.parametrize("where", ["training_step", "on_before_optimizer_step"])
def test_tensors_under_the_parameters_themselves_follow(where: str) -> None:
    module = ByParameter(where)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module)[0] < 8
    assert {id(key): value.shape for key, value in module.momentum.items()} == {
        id(parameter): parameter.shape for parameter in module.parameters()
    }


class Masked(TinyModule):
    """Masks gradients, by name, between the training step and the optimizer."""

    def __init__(self, where: str) -> None:
        super().__init__(net=net())
        self.where = where
        self.masks = {name: (torch.rand_like(p) > 0.3).float() for name, p in self.named_parameters()}

    def _mask(self) -> None:
        for name, parameter in self.named_parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(self.masks[name])

    def on_after_backward(self) -> None:
        if self.where == "on_after_backward":
            self._mask()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.where == "on_before_optimizer_step":
            self._mask()


@pytest.mark.parametrize("where", ["on_after_backward", "on_before_optimizer_step"])
def test_masks_of_gradients_follow(where: str) -> None:
    module = Masked(where)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module)[0] < 8
    assert all(module.masks[name].shape == parameter.shape for name, parameter in module.named_parameters())


def test_hooks_of_parameters_that_keep_tensors_are_refused_before_the_first_batch() -> None:
    module = TinyModule(net=net())
    for parameter in module.parameters():
        parameter.register_hook(functools.partial(torch.mul, torch.ones_like(parameter)))
    fit = trainer(pruning((1,)), epochs=2)
    with pytest.raises(SurgeryError, match="hook of gradients of TinyModule fails"):
        fit.fit(module, loader())
    assert fit.global_step == 0
    assert widths(module)[0] == 8


def total(tensors: Any) -> Tensor:
    return sum((tensor.abs().sum() for tensor in tensors), torch.zeros(()))


class Penalised(TinyModule):
    """Adds a penalty on weights that it holds in some way."""

    def __init__(self, hold: Callable[[nn.Module, list[nn.Parameter]], Callable[[], Tensor]]) -> None:
        super().__init__(net=net())
        self.penalty = hold(self, list(self.net.parameters()))
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        penalty = self.penalty()
        self.seen.append((penalty.item(), total(self.net.parameters()).item()))
        return self.loss(batch) + 1e-3 * penalty


HIDDEN: dict[str, Callable[[nn.Module, list[nn.Parameter]], Callable[[], Tensor]]] = {
    "closure": lambda module, weights: lambda: total(weights),
    "partial": lambda module, weights: functools.partial(total, weights),
    "default": lambda module, weights: lambda held=tuple(weights): total(held),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_weights_that_a_function_holds_are_refused_before_the_first_batch(kind: str) -> None:
    fit, module = trainer(pruning((1,)), epochs=2), Penalised(HIDDEN[kind])
    with pytest.raises(SurgeryError, match=r"would go on reading net.0.weight and 4 others"):
        fit.fit(module, loader())
    assert fit.global_step == 0
    assert widths(module)[0] == 8


def test_a_live_state_dict_goes_on_holding_the_models_weights() -> None:
    def live(module: nn.Module, weights: list[nn.Parameter]) -> Callable[[], Tensor]:
        module.live = module.net.state_dict()
        return lambda: total(module.live.values())

    module = Penalised(live)
    trainer(pruning((1,)), epochs=3).fit(module, loader())
    assert widths(module)[0] < 8
    assert all(penalty == pytest.approx(now) for penalty, now in module.seen)


class Slots:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    array: Any


class Plain:
    def __init__(self) -> None:
        self.numpy, self.own, self.python = np.random.default_rng(0), torch.Generator(), random.Random(0)
        self.array = np.zeros(3)


class Counting(TinyModule):
    """Changes state of many kinds in each step, and tells the Trainer to stop where its loss reads as 1."""

    steps = 0

    def __init__(self, parts: bool) -> None:
        super().__init__(net=net())
        self.counts, self.counter, self.slots, self.plain = np.zeros(2), collections.Counter(), Slots(), Plain()
        self.bytes, self.arrays = bytearray(2), [np.zeros(2)]
        self.fixed, self.frozen = np.frombuffer(b"12345678", np.uint8), Frozen(np.zeros(1))  # nobody may write to them
        self.parts = parts

    def state(self) -> dict[str, Any]:
        return {
            "array": self.counts.tolist(),
            "array in a list": self.arrays[0].tolist(),
            "array in an object": self.plain.array.tolist(),
            "counter": dict(self.counter),
            "slots": self.slots.count,
            "class": type(self).steps,
            "bytes": bytes(self.bytes),
            "NumPy": str(self.plain.numpy.bit_generator.state),
            "PyTorch": self.plain.own.get_state().tolist(),
            "Python": self.plain.python.getstate(),
        }

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.counts[0] += 1
        self.arrays[0] += 1
        self.plain.array += 1
        self.counter["steps"] += 1
        self.slots.count += 1
        type(self).steps += 1
        self.bytes[0] += 1
        self.bytes.append(0)
        self.plain.numpy.random()
        torch.rand(1, generator=self.plain.own)
        self.plain.python.random()
        if len(batch[0]) < 8:  # as where two examples stand for a batch
            self.trainer.should_stop = True
        # Where the step calls a part of the network, the step itself is traced.
        return self.loss(batch) + (self.net[:3](batch[0]).square().mean() if self.parts else 0)


class Same(pl.Callback):
    """Compares a module's state at the first batch of each epoch with the end of the one before."""

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.before = module.state()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            assert module.state() == self.before

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.before = module.state()


@pytest.fixture
def _steps_again() -> Iterator[None]:
    yield
    Counting.steps = 0


@pytest.mark.usefixtures("_steps_again")
@pytest.mark.parametrize("parts", [False, True])
def test_what_a_step_changes_is_restored_wherever_it_is(parts: bool) -> None:
    module, fit = Counting(parts), trainer(pruning((1,)), Same(), epochs=2)
    fit.fit(module, loader())
    assert widths(module)[0] < 8
    assert (Counting.steps, fit.global_step) == (6, 6), "no run of the step has stopped the fit"


class Pool(pl.LightningModule):
    """Keeps generated images in a list that is empty at first; has no forward (CycleGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
        self.judge = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(), nn.Conv2d(8, 1, 3))
        self.pool: list[Tensor] = []

    def training_step(self, batch: Any, index: int) -> None:
        makes, judges = self.optimizers()
        made = self.make(batch[0])
        makes.zero_grad()
        self.manual_backward((self.judge(made) - 1).square().mean())
        makes.step()
        self.pool.append(made.detach())
        self.pool = self.pool[-2:]
        judges.zero_grad()
        self.manual_backward(self.judge(self.pool[0]).square().mean())
        judges.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.make.parameters(), 1e-3), torch.optim.Adam(self.judge.parameters(), 1e-3)]


def test_a_pool_of_images_that_is_empty_at_first_stands_in_no_way() -> None:
    module = Pool()
    trainer(pruning((1,), allocation="auto", macs=0.7), epochs=2).fit(module, loader())
    assert module.make[0].out_channels < 8 or module.judge[0].out_channels < 8
    assert len(module.pool) == 2


def test_a_step_that_sets_rates_and_asks_for_types_does_so_in_training_only() -> None:
    Held = collections.namedtuple("Held", "optimizer")

    class Warmed(OwnOptimizer):
        def __init__(self) -> None:
            super().__init__()
            self.held = Held(self.own)

        def training_step(self, batch: Any, index: int) -> None:
            assert isinstance(self.own, torch.optim.SGD)
            for group in self.held.optimizer.param_groups:
                group["lr"] *= 1.1
            super().training_step(batch, index)

    module = Warmed()
    module.schedules = {"rate": StepLR(module.own, 100)}
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module)[0] < 8
    assert module.own.param_groups[0]["lr"] == pytest.approx(0.01 * 1.1**6)


def test_an_optimizer_of_other_tensors_is_none_of_ours() -> None:
    module = TinyModule(net=net())
    module.codes = torch.zeros(4, 4, requires_grad=True)
    module.search = torch.optim.LBFGS([module.codes])
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module)[0] < 8
