"""Copies of the network within the LightningModule: momentum encoders shrink alike, teachers stay, others are asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import infoprune
from infoprune.errors import ConfigurationError
from tests.tiny import Sound, TinyModule, TinyNet, loader, pruning, same, sgd, trainer, widths


class Momentum(TinyModule):
    """As in MoCo and BYOL: a second encoder, updated by hand, that is the average of the first over time."""

    def __init__(self, everything: bool = True) -> None:
        super().__init__()
        self.momentum_net = copy.deepcopy(self.net).requires_grad_(False)
        self.everything = everything

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for p, average in zip(self.net.parameters(), self.momentum_net.parameters(), strict=True):
                average.data = average.data * 0.9 + p.data * 0.1
            target = self.momentum_net(batch[0]).softmax(1)
        return nn.functional.cross_entropy(self.net(batch[0]), target) + self.loss(batch)

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters() if self.everything else self.net.parameters())


FOLLOWS = {"momentum_net": "net"}


@pytest.mark.parametrize(
    "everything",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["all-in-the-optimizer", "only-the-trained"],
)
def test_a_momentum_encoder_shrinks_alike(everything: bool) -> None:
    """The same channels, with their values; and the update by hand goes on."""
    before: dict[str, Tensor] = {}

    class Before(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                before.update(copy.deepcopy(pl_module.momentum_net.state_dict()))

    class After(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                kept = callback.history[0].kept["net.stem"]
                assert torch.equal(pl_module.momentum_net.stem.weight, before["stem.weight"][kept])
                assert torch.equal(pl_module.momentum_net.norm.running_var, before["norm.running_var"][kept])

    module, callback, sound = Momentum(everything), pruning((1, 2), follow=FOLLOWS), Sound()
    trainer(Before(), callback, After(), sound).fit(module, loader(), loader())
    assert before
    assert sound.events == 2
    assert widths(module.momentum_net) == widths(module.net) != widths(TinyNet())
    assert not any(p.requires_grad for p in module.momentum_net.parameters())
    assert repr(module.momentum_net) == repr(module.net)
    assert not torch.equal(module.momentum_net.head.bias, module.net.head.bias)


def test_a_run_with_a_copy_resumes_to_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = Momentum()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning((1, 2), follow=FOLLOWS), keep, epochs=4, enable_checkpointing=True).fit(whole, loader())
    for epoch in (0, 1, 2):
        module = Momentum()
        ckpt_path = tmp_path / f"epoch={epoch}.ckpt"
        trainer(pruning((1, 2), follow=FOLLOWS), epochs=4).fit(module, loader(), ckpt_path=ckpt_path)
        assert same(module, whole)
    assert same(infoprune.load_from_checkpoint(Momentum, tmp_path / "epoch=3.ckpt"), whole)


def test_nested_and_named_networks() -> None:
    """A copy within the network that is pruned is no part to be pruned by itself, even where the forward runs it."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = TinyNet()
            self.key = copy.deepcopy(self.query).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x) + self.key(x)

    module, sound = TinyModule(net=Both()), Sound()
    trainer(pruning((1,), filters=0.5, follow={"net.key": "net.query"}), sound, epochs=2).fit(module, loader())
    assert sound.events == 1
    assert widths(module.net.key) == widths(module.net.query) == [6, 6, 6, 3]


def fit_is_refused(module: TinyModule, message: str, **options: Any) -> None:
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ConfigurationError, match=message):
        trainer(pruning((1,), **options), epochs=2).fit(module, loader())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_copy_that_the_training_step_updates_follows_unasked() -> None:
    module, callback = Momentum(), pruning((1, 2))
    trainer(callback).fit(module, loader())
    assert widths(module.momentum_net) == widths(module.net) != widths(TinyNet())


def test_a_momentum_encoder_that_was_not_copied_and_is_in_the_optimizer_follows_unasked() -> None:
    """As in torchgeo's BYOL: it has weights of its own, and nobody says that it needs no gradients."""

    class Apart(Momentum):
        def __init__(self) -> None:
            super().__init__()
            self.momentum_net = TinyNet()

    module = Apart()
    trainer(pruning(), epochs=3).fit(module, loader())
    assert widths(module.momentum_net) == widths(module.net) != widths(TinyNet())


@pytest.mark.parametrize("through_data", [True, False])
def test_an_average_that_starts_equal_and_is_moved_in_place_follows_unasked(through_data: bool) -> None:
    """The first update changes no value, for the two are equal."""

    class Moved(Momentum):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.no_grad():
                for p, average in zip(self.net.parameters(), self.momentum_net.parameters(), strict=True):
                    (average.data if through_data else average).lerp_(p, 0.01)
                target = self.momentum_net(batch[0]).softmax(1)
            return nn.functional.cross_entropy(self.net(batch[0]), target) + self.loss(batch)

    module = Moved()
    trainer(pruning((1, 2))).fit(module, loader())
    assert widths(module.momentum_net) == widths(module.net) != widths(TinyNet())


class Averaged(TinyModule):
    """Has a second network of the same shape, and averages into it behind the training step, or never (a teacher)."""

    def __init__(self, updated: bool) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.updated = updated
        self.make_optimizer = lambda _: sgd(self.net.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch) + nn.functional.mse_loss(self.net(batch[0]), self.average(batch[0]))

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for p, average in zip(
                self.net.parameters(), self.average.parameters() if self.updated else (), strict=False
            ):
                average.lerp_(p, 0.1)


@pytest.mark.parametrize("updated", [True, False])
def test_a_copy_that_has_changed_by_the_first_event_follows_and_a_teacher_stays(updated: bool) -> None:
    module = Averaged(updated)
    trainer(pruning((1, 2))).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert widths(module.average) == widths(module.net if updated else TinyNet())


def test_before_any_training_copies_have_to_be_spoken_of() -> None:
    """An average and a teacher look the same then; a wrong guess would break the first or spoil the second."""
    message = r"'average' has the tensors of 'net'.*follow=\{'average': 'net'\}.*teacher\), give"
    with pytest.raises(ConfigurationError, match=message):
        trainer(pruning((0,)), epochs=1).fit(Averaged(True), loader())


def test_a_teacher_stays_as_it_is() -> None:
    class Taught(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = copy.deepcopy(self.net).requires_grad_(False).eval()

        def loss(self, batch: Any) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), self.teacher(batch[0])) + super().loss(batch)

    module, sound = Taught(), Sound()
    teacher = copy.deepcopy(module.teacher)
    trainer(pruning((1, 2), follow={}), sound).fit(module, loader())
    assert sound.events == 2
    assert repr(module.teacher) == repr(teacher)
    assert torch.equal(module.teacher.stem.weight, teacher.stem.weight)


def test_copies_that_are_none_are_refused() -> None:
    fit_is_refused(Momentum(), "has no submodule 'momentum', did you mean 'momentum_net'", follow={"momentum": "net"})
    fit_is_refused(
        Momentum(),
        r"'momentum_net' is no copy of 'net\.stem': stem.weight has shape \(12, 3, 3, 3\) in the one and None",
        follow={"momentum_net": "net.stem"},
    )


def test_networks_trained_for_themselves_are_no_copies() -> None:
    """Two generators of one class, as in CycleGAN: one is pruned, the other is not, and nobody asks."""
    module = TinyModule()
    module.other = TinyNet()
    trainer(pruning((1,), module="net"), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(module.other) == widths(TinyNet())
