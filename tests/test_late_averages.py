"""Averages that a project makes at the start and first updates after an event follow the cut; teachers stay whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import infoprune
from tests.tiers import slow
from tests.tiny import TinyModule, TinyNet, loader, pruning, same, sgd, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = widths(TinyNet())
GUESSED = "training has neither used nor changed so far"


@torch.no_grad()
def move(average: nn.Module, net: nn.Module) -> None:
    for old, new in zip(average.parameters(), net.parameters(), strict=True):
        old.lerp_(new, 0.1)


class Late(TinyModule):
    """Averages the network from the third epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.average = self.copied()
        self.make_optimizer = lambda _: sgd(self.net.parameters())

    def copied(self) -> Any:
        return copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.current_epoch >= 2:
            self.update()

    def update(self) -> None:
        move(self.average, self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.average(batch[0])


class LateOfPyTorch(Late):
    def copied(self) -> Any:
        return AveragedModel(self.net)

    def update(self) -> None:
        self.average.update_parameters(self.net)


class LateInAList(LateOfPyTorch):
    def copied(self) -> Any:
        return [AveragedModel(self.net)]

    def update(self) -> None:
        self.average[0].update_parameters(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.average[0](batch[0])


@pytest.mark.parametrize("event", [0, 1])
@pytest.mark.parametrize("kind", [Late, *map(slow, (LateOfPyTorch, LateInAList))])
def test_an_average_that_is_first_updated_after_the_event_follows(
    kind: type[Late], event: int, caplog: pytest.LogCaptureFixture
) -> None:
    module = kind()
    trainer(pruning((event,))).fit(module, loader(), loader())
    average = module.average[0] if kind is LateInAList else module.average
    assert widths(average) == widths(module.net) != WHOLE
    assert (GUESSED in caplog.text) == (kind is Late)


class LateCallback(pl.Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = copy.deepcopy(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch >= 1:
            move(self.average, pl_module)


def test_an_average_of_a_callback_that_is_first_updated_after_the_event_follows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module, late = TinyModule(), LateCallback()
    trainer(late, pruning((1,)), epochs=2).fit(module, loader())
    assert widths(late.average) == widths(module) != WHOLE
    assert f"LateCallback 0.average is a copy of the model that {GUESSED}" in caplog.text


class Taught(TinyModule):
    """Learns from a frozen copy of itself from some epoch on."""

    def __init__(self, start: int, hidden: bool) -> None:
        super().__init__()
        teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.teacher = [teacher] if hidden else teacher
        self.start = start
        self.make_optimizer = lambda _: sgd(self.net.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.current_epoch < self.start:
            return loss
        teacher = self.teacher[0] if isinstance(self.teacher, list) else self.teacher
        return loss + nn.functional.mse_loss(self.net(batch[0]), teacher(batch[0]))


@pytest.mark.parametrize("hidden", [True, slow(False)])
@pytest.mark.parametrize("start", [0, 1])
def test_a_frozen_teacher_stays_whole(start: int, hidden: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It starts with the network's weights too, but the training step runs it by the event."""
    module = Taught(start, hidden)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != WHOLE
    assert widths(module.teacher[0] if hidden else module.teacher) == WHOLE
    assert GUESSED not in caplog.text


def test_a_network_with_weights_of_its_own_that_training_does_not_run_stays_whole() -> None:
    module = Late()
    module.average = TinyNet().requires_grad_(False)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != WHOLE == widths(module.average)


@pytest.mark.parametrize("kind", [Late, LateOfPyTorch])
def test_follow_nothing_keeps_what_nobody_updates_whole(kind: type[Late]) -> None:
    module, late = kind(), LateCallback()
    trainer(late, pruning((0,), follow={}), epochs=1).fit(module, loader())
    assert widths(module.net) != WHOLE == widths(module.average) == widths(late.average.net)


@pytest.mark.slow
def test_a_run_that_resumes_before_the_event_cuts_the_average_alike(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, keep = Late(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning((1,)), keep, enable_checkpointing=True).fit(whole, loader(), loader())
    for epoch in (0, 1):
        module = Late()
        trainer(pruning((1,))).fit(module, loader(), loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(module, whole)
    assert same(infoprune.load_from_checkpoint(Late, tmp_path / "epoch=2.ckpt"), whole)


@pytest.mark.parametrize("start", [1, 3], ids=["before the event", "after the event"])
@pytest.mark.parametrize("first", [True, slow(False)])
def test_stochastic_weight_averaging_follows(start: int, first: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, keep = TinyModule(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    def fit(module: TinyModule, *others: Any, **options: Any) -> StochasticWeightAveraging:
        swa, line = StochasticWeightAveraging(0.01, swa_epoch_start=start), pruning((1,))
        callbacks = [swa, line] if first else [line, swa]
        trainer(*callbacks, *others, epochs=3, enable_checkpointing=bool(others)).fit(module, loader(), **options)
        return swa

    swa = fit(whole, keep)
    assert widths(swa._average_model) == widths(whole) != WHOLE
    module = TinyModule()
    fit(module, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(module, whole)


class LateTeacher(Taught):
    """A mean teacher that the training step runs from the start, and that follows the network late."""

    def __init__(self) -> None:
        super().__init__(start=0, hidden=False)

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 1:
            move(self.teacher, self.net)


def test_the_option_is_named_where_a_supposed_teacher_turns_out_to_be_an_average(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(RuntimeError, match="size"):
        trainer(pruning((1,)), epochs=2).fit(LateTeacher(), loader())
    assert "FilterPruning(follow={'teacher': 'net'})" in caplog.text
    module = LateTeacher()
    trainer(pruning((1,), follow={"teacher": "net"}), epochs=2).fit(module, loader())
    assert widths(module.teacher) == widths(module.net) != WHOLE


class LateShadow(pl.Callback):
    """Averages the state dict by name from the second epoch on, and swaps it in for validation."""

    shadow: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.shadow is None:
            self.shadow = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        assert self.shadow is not None
        for name, value in pl_module.state_dict().items() if trainer.current_epoch >= 2 else ():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 0.1)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        assert self.shadow is not None
        self.trained = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(self.shadow)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.trained)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.shadow

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.shadow = checkpoint["average"]


def test_a_late_average_by_name_follows_also_when_resumed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, keep = TinyModule(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(LateShadow(), pruning((1,)), keep, enable_checkpointing=True).fit(whole, loader(), loader())
    assert widths(whole) != WHOLE
    for epoch in (0, 1):
        module, ckpt_path = TinyModule(), tmp_path / f"epoch={epoch}.ckpt"
        trainer(LateShadow(), pruning((1,))).fit(module, loader(), loader(), ckpt_path=ckpt_path)
        assert same(module, whole)


class Shadow(nn.Module):
    """Keeps an average as buffers, as in latent diffusion."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("updates", torch.tensor(0))
        self.names = {name: name.replace(".", "") for name, _ in net.named_parameters()}
        for name, parameter in net.named_parameters():
            self.register_buffer(self.names[name], parameter.detach().clone())

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.updates += 1
        for name, parameter in net.named_parameters():
            self.get_buffer(self.names[name]).lerp_(parameter, 0.1)

    def copy_to(self, net: nn.Module) -> None:
        for name, parameter in net.named_parameters():
            parameter.data.copy_(self.get_buffer(self.names[name]))


class InBuffers(LateOfPyTorch):
    """Validates with the average."""

    def copied(self) -> Any:
        return Shadow(self.net)

    def update(self) -> None:
        self.average.update(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        before = copy.deepcopy(self.net.state_dict())
        self.average.copy_to(self.net)
        self.net(batch[0])
        self.net.load_state_dict(before)


class InAParameterList(LateOfPyTorch):
    def copied(self) -> Any:
        return nn.ParameterList(nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.net.parameters())

    def update(self) -> None:
        for old, new in zip(self.average, self.net.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.func.functional_call(
            self.net, dict(zip(dict(self.net.named_parameters()), self.average, strict=True)), batch[0]
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [InBuffers, InAParameterList])
def test_an_average_that_is_registered_tensor_by_tensor_follows_also_when_resumed(
    kind: type[Late], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    whole, keep = kind(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning((1,)), keep, enable_checkpointing=True).fit(whole, loader(), loader())
    tensors = [*whole.average.parameters(), *(buffer for buffer in whole.average.buffers() if buffer.dim())]
    assert [tensor.shape for tensor in tensors] == [parameter.shape for parameter in whole.net.parameters()]
    assert widths(whole.net) != WHOLE
    for epoch in (0, 1):
        module = kind()
        trainer(pruning((1,))).fit(module, loader(), loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(module, whole)
