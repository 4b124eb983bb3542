"""`validate_cuts`: what a cut itself costs is measured, told, recorded and drawn, and nothing else changes."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from infoprune.report import RunRecord, render_html
from infoprune.report.record import Totals
from tests.tiny import TinyModule, loader, pruning, same, trainer


class Watch(pl.Callback):
    """Counts validations, and keeps the network as the event left it."""

    def __init__(self) -> None:
        self.validations = 0
        self.after_event: Any = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            assert pl_module.training
            self.after_event = copy.deepcopy(pl_module.net)


def fit(validate: bool, *callbacks: pl.Callback, **options: Any) -> tuple[Any, TinyModule, Watch]:
    torch.manual_seed(0)
    module, watch, callback = TinyModule(), Watch(), pruning(1, validate_cuts=validate)
    trainer(callback, watch, *callbacks, epochs=2, **options).fit(module, loader(), loader(2))
    return callback, module, watch


def loss(module: TinyModule, net: Any) -> float:
    with torch.no_grad():
        module.net = net
        losses = [(float(module.eval().loss(batch)), len(batch[0])) for batch in loader(2)]
    return sum(value * size for value, size in losses) / sum(size for _, size in losses)


def test_what_is_measured_is_the_network_right_after_the_cut() -> None:
    callback, module, watch = fit(True)
    (event,) = callback.history
    assert event.metrics_cut["val/loss"] == pytest.approx(loss(module, watch.after_event), rel=1e-5)
    assert event.metrics_cut != event.metrics_after
    assert watch.validations == 2  # other callbacks see those of the epochs only


def test_the_fit_goes_on_as_without(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=-1)
    _, with_it, _ = fit(True, saver, EarlyStopping("val/loss", patience=1, min_delta=-10.0), enable_checkpointing=True)
    assert len(list(tmp_path.iterdir())) == 2  # none of the measured cut
    _, without, _ = fit(False)
    assert same(with_it, without)


def test_schedulers_and_callbacks_never_see_the_damage() -> None:
    """Where an epoch has no validation, what is watched at its end is that of an earlier one, not of the cut."""
    seen = {}
    for validate in (False, True):
        torch.manual_seed(0)
        stops = EarlyStopping("val/loss", patience=9, strict=False, check_on_train_epoch_end=True)
        runner = trainer(pruning(2, validate_cuts=validate), stops, epochs=3, check_val_every_n_epoch=2)
        runner.fit(TinyModule(), loader(), loader(2))
        progress = runner.fit_loop.epoch_loop.val_loop.batch_progress
        seen[validate] = (stops.best_score, runner.callback_metrics["val/loss"], progress.total.ready)
    assert seen[True] == seen[False]


def test_it_is_logged_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        callback, *_ = fit(True, logger=logger)
    (event,) = callback.history
    assert "val/loss is" in caplog.text
    assert "right after the cut" in caplog.text
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").open())
    logged = [float(row[key]) for row in rows if row[key := "prune/after_cut/val/loss"]]
    assert logged == [pytest.approx(event.metrics_cut["val/loss"])]


def test_without_validation_nothing_is_measured() -> None:
    callback = pruning(1, validate_cuts=True)
    trainer(callback, epochs=2, limit_val_batches=0).fit(TinyModule(), loader(), loader(2))
    assert callback.history[0].metrics_cut == {}


def test_the_report_draws_it() -> None:
    callback, *_ = fit(True)
    history = [{"epoch": 0.0, "val/loss": 1.0}, {"epoch": 1.0, "val/loss": 1.1}]
    record = RunRecord("Net", "l1", Totals(10, 10), Totals(5, 5), events=callback.history, history=history)
    page = render_html(RunRecord.from_json(record.to_json()))
    assert page.count('class="mark"') == 2  # the wide and the narrow drawing
    assert '<th scope="col">right after the cut</th>' in page
    callback.history[0].metrics_cut = {}
    assert "right after the cut" not in render_html(record)
