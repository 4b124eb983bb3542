"""FilterPruning within everything else that a Trainer does."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import infoprune
from infoprune import FilterPruning
from tests.tiers import slow
from tests.tiny import Sound, TinyModule, TinyNet, averaging, images, loader, pruning, same, trainer, widths

# -- the ordinary course of things ------------------------------------------------------------------------------------


def test_history_metrics_and_original() -> None:
    """An event leaves a record with scores, kept units and the validation before and after it."""
    module, callback = TinyModule(), pruning((1, 2))
    run = trainer(callback, epochs=4)
    run.fit(module, loader(), loader())
    first, last = callback.history
    assert (first.epoch, last.epoch, first.global_step) == (1, 2, 3)
    assert callback.unpruned is not None
    assert callback.unpruned.cost == infoprune.trace(TinyNet(), torch.zeros(1, 3, 8, 8)).cost()
    assert last.macs == infoprune.trace(module.net, torch.zeros(1, 3, 8, 8)).cost().macs
    assert 0.45 < last.macs / callback.unpruned.macs <= 0.5
    assert {row.name: row.channels_after for row in last.layers} == {
        "stem": module.net.stem.out_channels,
        "conv1": module.net.conv1.out_channels,
        "conv2": module.net.stem.out_channels,
        "head": 3,
    }
    assert first.metrics_before.keys() == first.metrics_after.keys() == last.metrics_before.keys() == {"val/loss"}
    assert first.metrics_after == last.metrics_before != first.metrics_before
    assert last.metrics_after["val/loss"] == pytest.approx(run.callback_metrics["val/loss"].item())
    assert "head" in callback.unpruned.frozen
    assert len(first.scores["stem"]) == 12


def test_same_seed_same_plan_and_no_random_number_is_used() -> None:
    """The data order and every random number of an unpruned run stay as they are: example inputs are looked up past
    the loader and in a random state of their own."""

    class Draws(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.seen += [batch[0].sum().item(), torch.rand(()).item()]

    def run(*callbacks: pl.Callback) -> tuple[list[float], pl.LightningModule]:
        pl.seed_everything(7, verbose=False)
        module, draws = TinyModule(), Draws()
        trainer(*callbacks, draws).fit(module, DataLoader(images(), 8, shuffle=True))
        return draws.seen, module

    (plain, _), (first, a), (second, b) = run(), run(pruning((0, 1))), run(pruning((0, 1)))
    assert plain == first == second
    assert same(a, b)


BY_DATA = {"name": "information_concentration", "bins": 8}


HRANK = pytest.param({"criterion": "hrank"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [HRANK, {"criterion": "taylor"}, {"allocation": BY_DATA}], ids=str)
def test_criteria_and_allocations_that_look_at_data(options: dict[str, Any]) -> None:
    """They see a fixed sample of the training data, and leave the run's random numbers alone."""

    def run(callback: FilterPruning) -> list[float]:
        pl.seed_everything(7, verbose=False)
        drawn: list[float] = []

        class Draws(pl.Callback):
            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                drawn.append(torch.rand(()).item())

        trainer(callback, Draws(), epochs=2).fit(TinyModule(), DataLoader(images(), 8, shuffle=True))
        return drawn

    first, again = (FilterPruning(schedule=1, calibration_images=16, macs=0.6, **options) for _ in range(2))
    assert run(first) == run(again) == run(pruning(1))
    assert first.history[0].kept == again.history[0].kept
    assert first.unpruned is not None
    assert first.history[0].macs < 0.61 * first.unpruned.macs


class Scalars(pl.loggers.logger.DummyLogger if hasattr(pl.loggers.logger, "DummyLogger") else object):  # type: ignore[misc]
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any = None, step: int = 0, **_: Any) -> None:
        self.told.append((step, dict(metrics)))


def test_scalars_reach_the_logger_and_the_callback_metrics() -> None:
    log, callback = Scalars(), pruning((1, 2))
    run = trainer(callback, logger=log)
    run.fit(TinyModule(), loader(), loader())
    events = {step: metrics for step, metrics in log.told if "prune/macs" in metrics}
    assert list(events) == [3, 6]
    last, original = events[6], callback.unpruned
    assert original is not None
    assert last["prune/event"] == 2
    assert last["prune/macs_ratio"] == pytest.approx(last["prune/macs"] / original.macs)
    assert last["prune/params_ratio"] == pytest.approx(last["prune/params"] / original.params)
    assert last["prune/width/stem"] == callback.history[1].layers[0].channels_after
    assert run.callback_metrics["prune/event"] == 2
    assert run.callback_metrics["prune/macs"] == last["prune/macs"]


def test_saved_metric_is_the_metric_of_the_saved_model(tmp_path: Any) -> None:
    """Trap 6: surgery at the end of an epoch would store the larger model's metric beside the smaller's weights."""
    best = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=-1)
    run = trainer(pruning((1, 2), reset_best=False), best, enable_checkpointing=True)
    module = TinyModule()
    run.fit(module, loader(), loader())
    assert len(best.best_k_models) == 3
    for path, stored in best.best_k_models.items():
        (again,) = run.validate(module, loader(), ckpt_path=path, verbose=False)
        assert again["val/loss"] == pytest.approx(stored.item(), abs=1e-6)


# -- Trainer features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.5},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        {"limit_train_batches": 2, "limit_val_batches": 1},
        {"overfit_batches": 1},
        {"val_check_interval": 0.5},
        {"val_check_interval": 2, "check_val_every_n_epoch": None},
        {"max_steps": 5},
        {"max_steps": 7, "epochs": -1},
        {"reload_dataloaders_every_n_epochs": 1},
        {"detect_anomaly": True, "inference_mode": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("validate", [slow(False), True], ids=["no-val", "val"])
def test_trainer_options(options: dict[str, Any], validate: bool) -> None:
    """Trap 3: without validation the last batch's gradients are still there at the epoch start; a ragged last
    accumulation window (3 batches by 2), mixed precision and clipping meet the new parameters."""
    module, sound = TinyModule(), Sound()
    run = trainer(pruning((1,)), sound, **options)
    run.fit(module, loader(), loader() if validate else None)
    assert sound.events == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_scaled_gradients_of_sixteen_bit_mixed() -> None:
    """A GradScaler keeps no parameter between steps: it goes on scaling those that an event has put in place."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)  # overflows at first
    module, sound = TinyModule(), Sound()
    half = MixedPrecision("16-mixed", "cpu", scaler)
    trainer(pruning((2, 4)), sound, epochs=6, plugins=half, gradient_clip_val=0.5).fit(module, loader())
    assert sound.events == 2
    assert 1 < scaler.get_scale() < 2.0**40
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_sixteen_bit_true_double_and_channels_last() -> None:
    """Memory format and dtype survive (index_select would lose channels_last)."""
    module = TinyModule().to(memory_format=torch.channels_last)
    trainer(pruning((1,)), epochs=2, precision="64-true").fit(module, loader())
    weight = module.net.conv1.weight
    assert weight.dtype is torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


class Tunable(TinyModule):
    batch_size, lr = 2, 0.05

    def train_dataloader(self) -> Any:
        return loader(self.batch_size)

    val_dataloader = train_dataloader


def test_tuners_train_without_pruning() -> None:
    """The finders of learning rate and batch size run short fits of their own; the schedule starts after them."""
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

    for finder in (LearningRateFinder(num_training_steps=5), BatchSizeFinder(max_trials=2, steps_per_trial=1)):
        callback, sound = pruning((0, 1)), Sound()
        trainer(finder, callback, sound).fit(Tunable())
        assert [event.epoch for event in callback.history] == [0, 1]


def test_fast_dev_run_tries_the_surgery() -> None:
    module, callback = TinyModule(), pruning((4, 6))
    trainer(callback, fast_dev_run=True).fit(module, loader(), loader())
    assert [event.epoch for event in callback.history] == [0]
    assert module.net.stem.out_channels < 12


def test_fit_again_with_the_same_trainer_does_not_prune_twice() -> None:
    """The schedule runs once a run, however often the fit is taken up."""
    module, callback = TinyModule(), pruning((1,))
    run = trainer(callback, epochs=2)
    run.fit(module, loader())
    after = widths(module)
    run.fit_loop.max_epochs = 4
    run.fit(module, loader())
    assert widths(module) == after
    assert len(callback.history) == 1


def test_a_new_trainer_is_a_new_run() -> None:
    """The callback object may be used again, say for the next fold of a cross-validation."""
    callback = pruning((1,))
    for _ in range(2):
        module = TinyModule()
        trainer(callback, epochs=2).fit(module, loader())
        assert len(callback.history) == 1
        assert module.net.stem.out_channels < 12


def test_early_stopping_and_best_checkpoint_forget_the_larger_model(tmp_path: Any) -> None:
    """Trap 11: a smaller model that improves every epoch is stopped by the larger one's score, and "best" stays the
    unpruned file, where the callbacks are not reset."""

    class Scripted(TinyModule):
        scores = (0.1, 0.9, 0.8, 0.7, 0.6)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.scores[self.current_epoch])

    def run(**resets: bool) -> tuple[pl.Trainer, ModelCheckpoint]:
        best = ModelCheckpoint(tmp_path / str(resets), monitor="val/loss", filename="{epoch}")
        stop = EarlyStopping("val/loss", patience=2)
        fit = trainer(stop, pruning((1,), **resets), best, epochs=5, enable_checkpointing=True)
        fit.fit(Scripted(), loader(), loader())
        return fit, best

    fooled, best = run(reset_best=False)
    assert fooled.current_epoch < 5
    assert best.best_model_path.endswith("epoch=0.ckpt")
    reset, best = run(reset_early_stopping=True)
    assert reset.current_epoch == 5
    assert best.best_model_path.endswith("epoch=4.ckpt")


# -- averaged copies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["ema-first", "ema-last"])
def test_averaged_copy_shrinks_alike(first: bool) -> None:
    """Trap 9: the average of a tensor that shrank to one channel broadcasts silently; others fail. Either order."""
    copies: list[tuple[list[int], list[int]]] = []

    class Compare(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            copies.append((widths(average._average_model.module), widths(pl_module)))

    average = averaging()
    order = [average, pruning((1, 2))] if first else [pruning((1, 2)), average]
    module, sound = TinyModule(), Sound()
    trainer(*order, sound, Compare()).fit(module, loader(), loader())
    assert sound.events == 2
    assert all(copy == own for copy, own in copies)


def test_average_is_that_of_the_kept_channels() -> None:
    """The averaged values, not only the shapes, follow their channels."""
    average, callback = averaging(), pruning((1,))
    before: dict[str, Tensor] = {}

    class Before(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                before.update({k: v.clone() for k, v in average._average_model.module.state_dict().items()})

    class After(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                kept = callback.history[0].kept["stem"]
                now = average._average_model.module.state_dict()
                assert torch.equal(now["net.stem.weight"], before["net.stem.weight"][kept])
                assert not torch.equal(now["net.stem.weight"], pl_module.net.stem.weight)

    trainer(average, Before(), callback, After(), epochs=2).fit(TinyModule(), loader())
    assert before
