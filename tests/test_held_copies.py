"""Averages and first weights kept by hand, outside of the model, follow a cut; teachers stay whole."""

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
from infoprune.callbacks.engine.held_match import Originals, put_back
from infoprune.structure import PruningPlan
from infoprune.structure.surgery.transaction import Transaction
from tests.tiers import slow
from tests.tiny import TinyModule, TinyNet, loader, pruning, same, trainer, widths

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
@pytest.mark.parametrize("first", [True, slow(False)], ids=["before", "behind"])
def test_an_average_in_a_callback_follows(kind: Any, first: bool) -> None:
    module, average = TinyModule(), kind()
    callbacks = [average, pruning((1,))] if first else [pruning((1,)), average]
    trainer(*callbacks, epochs=2).fit(module, loader(), loader())
    assert widths(module.net) != widths(TinyNet())
    assert average.shapes() == [parameter.shape for parameter in module.net.parameters()]


@pytest.mark.parametrize("updated", [True, False])
def test_a_copy_behind_an_attribute_follows_if_it_is_updated(updated: bool) -> None:
    """In a list, where Lightning does not see it: a teacher, which is run, stays whole; an average follows."""

    class Hidden(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [copy.deepcopy(self.net)]

        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch) + (self(batch[0]) - self.hidden[0](batch[0]).detach()).square().mean()

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
def test_tensors_that_the_model_keeps_follow(kind: Any, updated: bool) -> None:
    """An average in a dict or a list that is made anew each step, and the first weights, which may be needed later."""

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
    assert widths(module.net) != widths(TinyNet())
    assert [tensor.shape for tensor in kept] == [parameter.shape for parameter in module.parameters()]


def test_tensors_that_are_held_are_put_back_after_an_error() -> None:
    module, average = TinyModule(), AverageByName()
    run = trainer(average)
    average.on_train_start(run, module)
    plan = PruningPlan({"net.stem.weight": {0: (1,)}}, {"net.stem.weight": tuple(module.net.stem.weight.shape)})
    held = Originals(module, plan).match(average.shadow)
    assert held is not None

    def fails() -> None:
        with put_back([held]):
            held.shrink(plan, {}, Transaction([module]))
            assert average.shadow["net.stem.weight"].shape[0] == module.net.stem.weight.shape[0] - 1
            raise MemoryError

    with pytest.raises(MemoryError):
        fails()
    assert average.shadow["net.stem.weight"].shape == module.net.stem.weight.shape


class Notes(pl.Callback):
    """Keeps a teacher, and what the model was when training started, in several forms, and never changes it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.teacher = TinyNet()
        self.by_name = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}
        self.by_order = list(self.by_name.values())


def shapes(tensors: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


@pytest.mark.parametrize("follow", [None, {}])
def test_first_weights_in_a_callback_follow_and_a_teacher_stays_whole(follow: Any) -> None:
    module, notes, whole = TinyModule(), Notes(), shapes(TinyModule().parameters())
    trainer(notes, pruning((1,), follow=follow), epochs=2).fit(module, loader())
    now = shapes(module.parameters())
    assert shapes(notes.teacher.parameters()) == whole != now
    assert shapes(notes.by_name.values()) == shapes(notes.by_order) == (now if follow is None else whole)


def test_a_teacher_in_a_dict_stays_whole() -> None:
    class Taught(TinyModule):
        def on_fit_start(self) -> None:
            self.teacher = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            wanted = torch.func.functional_call(TinyNet(), self.teacher, (batch[0],))
            return self.loss(batch) + nn.functional.mse_loss(self(batch[0]), wanted)

    module = Taught()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert shapes(module.teacher.values()) == shapes(TinyNet().parameters())


def test_the_models_own_parameters_in_a_callback_give_way_to_the_new() -> None:
    class Clips(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.clipped = [p for p in pl_module.parameters() if p.dim() > 1]

    module, clips = TinyModule(), Clips()
    trainer(clips, pruning((1,)), epochs=2).fit(module, loader())
    assert {id(p) for p in clips.clipped} == {id(p) for p in module.parameters() if p.dim() > 1}


def test_a_wrapper_of_the_model_in_a_callback_is_no_copy() -> None:
    class Wraps(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.wrapper = nn.Sequential(pl_module.net)

    module, wraps = TinyModule(), Wraps()
    trainer(wraps, pruning((1, 2)), epochs=3).fit(module, loader())
    assert wraps.wrapper[0] is module.net
    assert module.net(torch.randn(2, 3, 8, 8)).shape == (2, 3)


def test_before_any_training_all_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    module, notes = TinyModule(), Notes()
    trainer(notes, pruning((0,)), epochs=1).fit(module, loader())
    assert widths(module.net) != widths(TinyNet()) == widths(notes.teacher)
    assert "Notes 0.teacher has the shapes of the model and stays whole" in caplog.text


def test_an_average_follows_when_a_run_resumes_right_before_an_event(tmp_path: Any) -> None:
    class Saved(AverageByName):
        def state_dict(self) -> Any:
            return {"shadow": dict(self.shadow)}

        def load_state_dict(self, state_dict: Any) -> None:
            self.loaded = state_dict["shadow"]

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            self.shadow = getattr(self, "loaded", self.shadow)

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(Saved(), pruning((1,)), keep, epochs=2, enable_checkpointing=True).fit(TinyModule(), loader())
    module, average = TinyModule(), Saved()
    trainer(average, pruning((1,)), epochs=2).fit(module, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert widths(module.net) != widths(TinyNet())
    assert average.shapes() == [parameter.shape for parameter in module.net.parameters()]


def test_what_callbacks_hold_beside_copies_ends_no_fit() -> None:
    class Closed(dict[str, Tensor]):
        def values(self) -> Any:
            raise RuntimeError("the store is closed")

    class Holds(pl.Callback):
        def __init__(self) -> None:
            self.store = Closed(a=torch.ones(2))
            self.lazy = nn.LazyLinear(3)
            self.tensors = {"meta": torch.ones(2, device="meta"), "sparse": torch.ones(2).to_sparse()}
            self.itself = [self]

    callback = pruning((1,))
    trainer(Holds(), callback, epochs=2).fit(TinyModule(), loader())
    assert len(callback.history) == 1


def test_a_state_dict_of_the_first_weights_follows_and_loads_wherever_it_is_loaded() -> None:
    class Rewinds(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.weights = copy.deepcopy(pl_module.state_dict())

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.load_state_dict(self.weights)

    module, rewinds, fresh = TinyModule(), Rewinds(), TinyModule()
    trainer(rewinds, pruning((1, 2)), epochs=3).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert torch.equal(module.net.stem.weight, rewinds.weights["net.stem.weight"])
    fresh.load_state_dict(rewinds.weights)
    assert widths(fresh) == widths(module)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end"])
def test_snapshots_that_are_taken_during_the_fit_stay_whole(hook: str) -> None:
    class Snapshots(pl.Callback):
        def __init__(self) -> None:
            self.networks: list[tuple[int, nn.Module]] = []
            setattr(self, hook, self.take)

        def take(self, trainer: Any, pl_module: Any) -> None:
            self.networks.append((trainer.current_epoch, copy.deepcopy(pl_module.net)))

    module, snapshots = TinyModule(), Snapshots()
    trainer(snapshots, pruning((1,)), epochs=2).fit(module, loader())
    first, second = (network for _, network in snapshots.networks)
    assert widths(first) == widths(TinyNet())
    assert widths(second) == (widths(module.net) if hook == "on_train_epoch_end" else widths(TinyNet()))


class SavesItsAverage(TinyModule):
    """Keeps an average in a list, where Lightning does not see it, and saves it in an entry of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.average = [copy.deepcopy(self.net).requires_grad_(False)]

    def on_train_batch_end(self, *_: Any) -> None:
        for mean, weight in zip(self.average[0].parameters(), self.net.parameters(), strict=True):
            mean.lerp_(weight.detach(), 0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.average[0].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average[0].load_state_dict(checkpoint["average"])


def test_an_average_that_the_project_saves_itself_loads_and_resumes(tmp_path: Path) -> None:
    module, saved = SavesItsAverage(), tmp_path / "one.ckpt"
    fitted = trainer(pruning((1,)), epochs=2)
    fitted.fit(module, loader())
    fitted.save_checkpoint(saved)
    loaded = infoprune.load_from_checkpoint(SavesItsAverage, saved)
    assert same(loaded.average[0], module.average[0])
    resumed = SavesItsAverage()
    trainer(pruning((1,)), epochs=3).fit(resumed, loader(), ckpt_path=saved)
    assert widths(resumed.average[0]) == widths(module.net)
