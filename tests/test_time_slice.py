"""A fit in portions: it stops with a checkpoint, and what goes on from there ends as a fit in one go."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from infoprune.callbacks import FilterPruning, RunReport, TimeSlice, time_slice
from infoprune.callbacks.time_slice import SliceOver
from infoprune.cli import main
from infoprune.data.loader import EpochBatches, ImageSet, TensorLoader
from infoprune.errors import ConfigurationError
from infoprune.models import CifarResNet, ImageClassifier
from infoprune.report.record import RunRecord
from tests.tiny import TinyModule, loader, pruning, same, trainer


class Data(pl.LightningDataModule):
    """Twelve pictures in batches of four; the loader keeps its position."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=draw)
        self.images = ImageSet(pixels, torch.arange(12) % 3)

    def train_dataloader(self) -> TensorLoader:
        return TensorLoader(self.images, EpochBatches(12, 4, shuffle=True))

    def val_dataloader(self) -> TensorLoader:
        return TensorLoader(self.images, EpochBatches(12, 4, shuffle=False))

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if isinstance(batch, torch.Tensor) else (batch[0].float() / 255, batch[1])


def classifier() -> ImageClassifier:
    torch.manual_seed(3)
    return ImageClassifier(CifarResNet(depth=8, width=4, num_classes=3), num_classes=3, input_shape=(3, 8, 8))


def fit(folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> tuple[ImageClassifier, RunReport]:
    module, report = classifier(), RunReport(latency_repeats=0)
    report.tests_follow = True
    cut = FilterPruning("l1", filters=0.5, schedule=1)
    logger = CSVLogger(folder, name="", version="run")
    runner = trainer(report, cut, *callbacks, epochs=3, logger=logger)
    runner.fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    report.finish(runner, module, runner.datamodule)  # type: ignore[attr-defined]
    return module, report


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_slices_end_as_one_go(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, history and both tests agree, wherever it was cut off: before, at and after the pruning event."""
    whole, report = fit(tmp_path / "whole")
    clock = itertools.count()  # each look at the clock is a second; the first is the beginning
    monkeypatch.setattr(time_slice, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    checkpoint, stops = None, 0
    while True:
        try:
            module, resumed = fit(tmp_path / "sliced", TimeSlice(steps / 60), ckpt_path=checkpoint)
            break
        except SliceOver as over:
            checkpoint, stops = over.checkpoint, stops + 1
    assert stops == 8 // steps  # it looks at the clock after six inner steps and at two ends of epochs
    assert same(module, whole)
    assert outcome(resumed) == outcome(report)


def outcome(report: RunReport) -> dict[str, Any]:
    """What the records of equal runs agree in."""
    assert report.folder is not None
    record = RunRecord.load(report.folder / "record.json")
    assert record.before.metrics["test/acc"] is not None
    return {name: vars(record)[name] for name in ("before", "after", "layers", "events", "history", "coupling")}


def test_it_stops_at_the_end_of_an_epoch_where_the_loader_forgets_its_place(tmp_path: Path) -> None:
    runner = trainer(pruning((1,)), TimeSlice(1e-9), epochs=3, default_root_dir=tmp_path)
    with pytest.raises(SliceOver):
        runner.fit(TinyModule(), loader())
    assert runner.fit_loop.epoch_loop.batch_progress.is_last_batch


def test_a_run_that_is_over_in_time_is_left_alone(tmp_path: Path) -> None:
    plain, sliced = TinyModule(), TinyModule()
    sliced.load_state_dict(plain.state_dict())
    trainer(pruning((1,)), epochs=2).fit(plain, loader())
    trainer(pruning((1,)), TimeSlice(60), epochs=2, default_root_dir=tmp_path).fit(sliced, loader())
    assert same(plain, sliced)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_last_epoch_is_finished(tmp_path: Path) -> None:
    """Nothing would be left for another slice."""
    trainer(pruning((0,)), TimeSlice(1e-9), epochs=1, default_root_dir=tmp_path).fit(TinyModule(), loader())
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("minutes", [0, -1, "30", float("nan")])
def test_minutes_are_more_than_nothing(minutes: Any) -> None:
    with pytest.raises(ConfigurationError, match="TimeSlice: minutes must be a number of at least 1e-09, got"):
        TimeSlice(minutes)


@pytest.mark.slow
def test_the_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
    short = ["--trainer.max_epochs=3", "--trainer.callbacks.schedule=[1]", "--trainer.enable_progress_bar=false"]
    fit = ["fit", f"--config={config}", *short]
    assert main([*fit, "--trainer.callbacks+=TimeSlice", "--trainer.callbacks.minutes=0.00001"]) == 0
    folder = Path("runs/quickstart/version_0")
    said = capsys.readouterr().out
    assert f"stopped after 1e-05 minutes; --ckpt_path {folder / 'checkpoints/slice.ckpt'} goes on from here" in said
    assert not (folder / "record.json").exists()
