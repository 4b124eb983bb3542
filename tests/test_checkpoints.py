"""Checkpoints of a model that changes its shape: resume, test, load, refuse."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

import infoprune
from infoprune.criteria import L1
from infoprune.errors import CheckpointError, ConfigurationError
from tests.tiny import TinyModule, TinyNet, averaging, images, loader, pruning, same, sgd, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def alike() -> DataLoader[Any]:
    """Three batches with the same content: a plain DataLoader starts an epoch over when a fit resumes within it."""
    return DataLoader(ConcatDataset([images(8)] * 3), 8)


def callbacks(kind: str) -> list[pl.Callback]:
    if kind == "ema-first":
        return [averaging(), pruning((1, 2))]
    return [pruning((1, 2)), averaging()] if kind == "ema-last" else [pruning((1, 2))]


def fitted(folder: Path, kind: str) -> tuple[TinyModule, list[str]]:
    """An uninterrupted run that leaves a checkpoint after every step and every epoch."""
    torch.manual_seed(1)
    module = TinyModule(adamw if kind == "adamw" else sgd)
    keep: dict[str, Any] = {"dirpath": folder, "save_top_k": -1, "monitor": None}
    steps = ModelCheckpoint(filename="step-{step}", every_n_train_steps=2, **keep)
    epochs = ModelCheckpoint(filename="epoch-{epoch}", every_n_epochs=1, save_on_train_epoch_end=True, **keep)
    trainer(*callbacks(kind), steps, epochs, epochs=4, enable_checkpointing=True).fit(module, alike(), loader())
    return module, sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "kind", ["sgd", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("adamw", "ema-first")), "ema-last"]
)
def test_resume_is_bit_identical_from_everywhere(kind: str, tmp_path: Path) -> None:
    """Trap 7: from before, between and after the events, and from within an epoch, a fresh unpruned module ends with
    the same bits as the run that was never interrupted; no event happens twice. With averaged copies too, wherever
    their callback stands: they write the weights without any record (trap 9)."""
    whole, files = fitted(tmp_path, kind)
    assert len(files) == 10
    if kind != "sgd":  # from every epoch, and from within one
        files = [file for file in files if file.startswith("epoch") or file == "step-step=4.ckpt"]
    if "ema" in kind:
        files.remove("epoch-epoch=3.ckpt")  # nothing is left to train, and Lightning keeps the weights unaveraged
    for file in files:
        torch.manual_seed(99)  # other initial weights
        module, cut = TinyModule(whole.make_optimizer), callbacks(kind)
        trainer(*cut, epochs=4).fit(module, alike(), loader(), ckpt_path=tmp_path / file)
        assert same(module, whole), file
        history = next(c for c in cut if isinstance(c, infoprune.FilterPruning)).history
        assert [event.epoch for event in history] == [1, 2], file
        assert infoprune.plan_of(module) == infoprune.plan_of(whole)
    for file in files:
        torch.load(tmp_path / file, weights_only=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModule]:
    """A pruned module, and its checkpoints: ``full`` and ``light`` (weights only) of every epoch."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    module = TinyModule()
    full = ModelCheckpoint(folder, filename="full-{epoch}", save_top_k=-1)
    light = ModelCheckpoint(
        folder, filename="light-{epoch}", save_top_k=-1, save_weights_only=True, every_n_train_steps=3
    )
    trainer(pruning((1, 2)), full, light, enable_checkpointing=True).fit(module, loader(), loader())
    return folder, module


class Downhill(TinyModule):
    """Gets worse with every epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", -float(self.current_epoch))


def test_best_from_before_the_event_grows_and_tests_right(tmp_path: Path) -> None:
    """Trap 8: "best" may be a file from before an event; the model grows back to it, and a fit can go on from there."""
    run = trainer(pruning((1,), reset_best=False), epochs=2)
    best = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val/score", mode="max", save_top_k=-1)
    run.callbacks.append(best)  # type: ignore[attr-defined]
    module = Downhill()
    run.fit(module, loader(), loader())
    (now,) = run.test(module, loader(), verbose=False)
    (was,) = run.test(module, loader(), ckpt_path="best", verbose=False)
    assert best.best_model_path == str(tmp_path / "epoch=0.ckpt")
    assert widths(module) == widths(TinyModule())
    unpruned = TinyModule()
    unpruned.load_state_dict(torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"])
    (expected,) = trainer().test(unpruned, loader(), verbose=False)
    assert was == expected != now
    (again,) = run.test(module, loader(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert again == now
    assert module.net.stem.out_channels < 12
    trainer(pruning((0,)), epochs=1).fit(module, loader())


@pytest.mark.parametrize("kind", ["full", "light"])
def test_test_and_predict_in_another_process(kind: str, run: tuple[Path, TinyModule]) -> None:
    """Trap 8: ``save_weights_only`` leaves out all that callbacks store; the record is also in the weights."""
    folder, whole = run
    for epoch, events in [(0, 0), (1, 1), (2, 2)]:
        module = TinyModule()
        tester = trainer(pruning((1, 2)))
        tester.test(module, loader(), ckpt_path=folder / f"{kind}-epoch={epoch}.ckpt", verbose=False)
        assert len(infoprune.plan_of(module).removed) > 0 or events == 0
        if events == 2:
            assert same(module, whole)
    predicted = trainer(pruning((1, 2))).predict(TinyModule(), loader(), ckpt_path=folder / f"{kind}-epoch=2.ckpt")
    expected = trainer().predict(whole, loader())
    assert predicted is not None
    assert expected is not None
    assert all(torch.equal(a, b) for a, b in zip(predicted, expected, strict=True))


class Configured(TinyModule):
    """Has constructor arguments that the checkpoint must bring back, and an on_load_checkpoint of its own."""

    def __init__(self, inner: int = 4, dropout: float = 0.0) -> None:
        super().__init__(net=TinyNet(inner=inner))
        self.save_hyperparameters()
        self.seen = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = True


@pytest.mark.parametrize("light", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_load_from_checkpoint(light: bool, tmp_path: Path) -> None:
    """Trap 8: Lightning's own classmethod, which once ended with size mismatches, loads as ours does."""
    module = Configured(inner=10, dropout=0.25)
    save = trainer(pruning((1,)), epochs=2)
    save.fit(module, loader())
    path = tmp_path / "after.ckpt"
    save.save_checkpoint(path, weights_only=light)
    assert same(Configured.load_from_checkpoint(path), module)
    loaded = infoprune.load_from_checkpoint(Configured, path)
    assert type(loaded) is Configured
    assert loaded.seen
    assert loaded.hparams == {"inner": 10, "dropout": 0.25}
    assert same(loaded, module)
    assert infoprune.plan_of(loaded) == infoprune.plan_of(module)
    assert infoprune.load_from_checkpoint(Configured, path, dropout=0.5).hparams["dropout"] == 0.5
    trainer(pruning((0,)), epochs=1).fit(loaded, loader())


def test_network_saved_alone_after_a_fit(run: tuple[Path, TinyModule], tmp_path: Path) -> None:
    """Any part of a LightningModule knows its own plan: infoprune.save and load share the fit's memory."""
    _, module = run
    infoprune.save(module.net, tmp_path / "net.pt")
    net = infoprune.load(tmp_path / "net.pt", TinyNet())
    assert same(net, module.net)
    assert infoprune.plan_of(net) == infoprune.plan_of(module.net)
    assert same(copy.deepcopy(module), module)
    assert infoprune.plan_of(copy.deepcopy(module)) == infoprune.plan_of(module)


def test_other_architecture_is_refused_by_name(run: tuple[Path, TinyModule]) -> None:
    """The first tensor that differs is named, and the module is as it was."""
    folder, _ = run
    for net, message in [
        (TinyNet(inner=10), r"net\.conv1\.weight has shape \(10, 12, 3, 3\), the plan expects \(12, 12, 3, 3\)"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()),
            r"cuts 'net\.stem\.weight', which this model does not have.*is added in the fit",
        ),
    ]:
        module = TinyModule(net=net)
        before = copy.deepcopy(module)
        with pytest.raises(CheckpointError, match=f"belongs to another architecture: .*{message}"):
            trainer(pruning((1, 2))).fit(module, loader(), ckpt_path=folder / "full-epoch=2.ckpt")
        with pytest.raises(CheckpointError, match=message):
            trainer(pruning((1, 2))).test(module, loader(), ckpt_path=folder / "light-epoch=2.ckpt", verbose=False)
        assert same(module, before)


def test_weights_without_a_record(run: tuple[Path, TinyModule]) -> None:
    """A state dict rewritten as a plain dict, as safetensors gives it back, has lost its record: shapes that fit are
    taken, those from before the first cut let the model grow, others are refused by name."""
    folder, whole = run
    pruned, unpruned = (
        dict(torch.load(folder / f"full-epoch={epoch}.ckpt", weights_only=True)["state_dict"]) for epoch in (2, 0)
    )
    module = infoprune.load_from_checkpoint(TinyModule, folder / "full-epoch=2.ckpt")
    module.load_state_dict(pruned)
    assert same(module, whole)
    module.load_state_dict(unpruned)
    assert widths(module) == widths(TinyModule())
    assert infoprune.plan_of(module).is_empty
    module = infoprune.load_from_checkpoint(TinyModule, folder / "full-epoch=2.ckpt")
    odd = dict(pruned)
    odd["net.conv1.bias"] = torch.zeros(99)
    with pytest.raises(CheckpointError, match=r"net\.conv1\.bias has shape \(99,\) in the checkpoint"):
        module.load_state_dict(odd)
    assert same(module, whole)


def test_damaged_record_is_a_checkpoint_error(run: tuple[Path, TinyModule], tmp_path: Path) -> None:
    folder, _ = run
    checkpoint = torch.load(folder / "full-epoch=2.ckpt", weights_only=True)
    checkpoint["infoprune"]["plan"]["tensors"] = {"net.stem.weight": {"shape": "?"}}
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    module = TinyModule()
    with pytest.raises(CheckpointError, match="pruning record cannot be read"):
        trainer(pruning((1, 2))).fit(module, loader(), ckpt_path=tmp_path / "damaged.ckpt")
    assert widths(module) == widths(TinyModule())


def test_checkpoint_from_before_filter_pruning_was_added(tmp_path: Path) -> None:
    """A dense run can be taken up with FilterPruning in its second half."""
    dense = trainer(epochs=1)
    dense.fit(TinyModule(), loader())
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    module, callback = TinyModule(), pruning((1, 2))
    trainer(callback).fit(module, loader(), ckpt_path=tmp_path / "dense.ckpt")
    assert len(callback.history) == 2


def test_a_module_is_left_as_it_was_found() -> None:
    """After a fit nothing of ours stands in the way of the module's own hooks, and pickling it needs no Trainer."""
    module = TinyModule()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert "on_load_checkpoint" not in vars(module)
    own = Configured()
    own.on_load_checkpoint = lambda checkpoint: None  # type: ignore[method-assign]
    mine = own.on_load_checkpoint
    trainer(pruning((1,)), epochs=2).fit(own, loader())
    assert own.on_load_checkpoint is mine


def test_spawned_processes_are_refused_unless_attached() -> None:
    """Trap 9: after ddp_spawn the main process loads the weights into its own, unpruned module. Nothing of a callback
    runs there before the launch, so this is told by the first thing that does: setup, in the new process."""
    from infoprune.callbacks.trainer_checks import check_strategy

    launched = trainer(strategy="ddp_fork", devices=2)
    module = TinyModule()
    with pytest.raises(ConfigurationError, match=r"strategy='ddp', or call infoprune\.attach\(model\)"):
        check_strategy(launched, module)
    infoprune.attach(module)
    check_strategy(launched, module)


def test_a_used_callback_goes_to_another_process() -> None:
    """As ddp_spawn and ddp_fork send it: a second fit after a first."""
    callback = pruning((1,))
    trainer(callback, epochs=2).fit(TinyModule(), loader())
    again = pickle.loads(pickle.dumps(callback))
    assert again.history == callback.history
    module = TinyModule()
    trainer(again, epochs=2).fit(module, loader())
    assert [event.epoch for event in again.history] == [1]
    assert not infoprune.plan_of(module).is_empty


def test_what_an_exception_checkpoint_saves_at_an_event_resumes(tmp_path: Path) -> None:
    class FailsOnce(L1):
        failed = False

        def layer_scores(self, *args: Any) -> Any:
            if not FailsOnce.failed:
                FailsOnce.failed = True
                raise OSError("the disk is full")
            return super().layer_scores(*args)

    keep = OnExceptionCheckpoint(tmp_path, "failed")
    with pytest.raises(OSError, match="disk is full"):
        trainer(pruning((1, 2), criterion=FailsOnce()), keep, epochs=4, enable_checkpointing=True).fit(
            TinyModule(), loader()
        )
    module, callback = TinyModule(), pruning((1, 2), criterion=FailsOnce())
    trainer(callback, epochs=4).fit(module, loader(), ckpt_path=tmp_path / "failed.ckpt")
    assert [event.epoch for event in callback.history] == [1, 2]
    assert module(torch.zeros(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    "damage", [{"held": 5}, {"follow": [1, 2]}, {"original": {"macs": 1}}, {"events": ["x"], "history": ["x"]}]
)
def test_a_damaged_state_of_the_callback_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="run")
    trainer(pruning((1,)), keep, epochs=2, enable_checkpointing=True).fit(TinyModule(), loader())
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=False)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "FilterPruning" in key)
    state.update(damage)
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(CheckpointError, match="FilterPruning cannot be read"):
        trainer(pruning((1,)), epochs=3).fit(TinyModule(), loader(), ckpt_path=tmp_path / "damaged.ckpt")


@pytest.mark.slow
def test_a_network_that_is_compiled_in_one_script_only_is_told(tmp_path: Path) -> None:
    module = TinyModule()
    module.net = torch.compile(module.net, backend="eager")
    keep = ModelCheckpoint(tmp_path, filename="last")
    trainer(pruning(), keep, epochs=3, enable_checkpointing=True).fit(module, loader())
    with pytest.raises(CheckpointError, match=r"wrapped by torch\.compile: wrap it in both"):
        trainer(pruning()).test(TinyModule(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
