"""FilterPruning beside the callbacks that come with Lightning, in any order."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler

from tests.tiny import Sound, TinyModule, averaging, loader, pruning, same, sgd, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Talkative(TinyModule):
    """Shows its loss, and what is left of it, in the progress bar."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_progress_bars_go_on_through_events(bar: Callable[[], pl.Callback], capsys: pytest.CaptureFixture[str]) -> None:
    sound = Sound()
    run = trainer(bar(), pruning((1, 2)), sound, enable_progress_bar=True)
    run.fit(Talkative(), loader(), loader())
    shown = capsys.readouterr().out
    assert sound.events == 2
    assert "Epoch 2" in shown
    assert "train/loss" in shown


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_a_summary_after_the_cut_counts_what_is_left(kind: Any, tmp_path: Path) -> None:
    """A summary is made when a fit starts: of the whole model in the first, of what is left of it in one that resumes
    from after an event, or that goes on with the pruned module."""
    counts: list[int] = []

    class Summary(kind):  # type: ignore[misc]
        @staticmethod
        def summarize(summary_data: Any, total_parameters: int, *args: Any, **options: Any) -> None:
            counts.append(total_parameters)
            kind.summarize(summary_data, total_parameters, *args, **options)

    def fit(module: TinyModule, ckpt_path: Path | None = None) -> None:
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        run = trainer(Summary(), pruning((1,)), keep, enable_model_summary=True, enable_checkpointing=True, epochs=3)
        run.fit(module, loader(), loader(), ckpt_path=ckpt_path)

    module = TinyModule()
    whole = sum(p.numel() for p in module.parameters())
    fit(module)
    left = sum(p.numel() for p in module.parameters())
    fit(TinyModule(), tmp_path / "epoch=1.ckpt")
    trainer(Summary(), enable_model_summary=True, epochs=1).fit(module, loader())
    assert left < whole
    assert counts == [whole, left, left]


def test_the_learning_rate_monitor_logs_what_it_would_without_pruning(tmp_path: Path) -> None:
    def rates(*callbacks: pl.Callback) -> list[tuple[str, str, str]]:
        log = CSVLogger(tmp_path, name=str(len(callbacks)))
        module = TinyModule(scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5))
        monitor = LearningRateMonitor("step", log_momentum=True)
        trainer(monitor, *callbacks, logger=log, log_every_n_steps=1).fit(module, loader())
        with (Path(log.log_dir) / "metrics.csv").open(newline="") as file:
            return [
                (row["step"], row["lr-SGD"], row["lr-SGD-momentum"]) for row in csv.DictReader(file) if row["lr-SGD"]
            ]

    assert len(rates()) == 9
    assert rates(pruning((1, 2))) == rates()


class Transfer(TinyModule):
    """A backbone that is frozen at first."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.net.stem, self.net.norm)

    def configure_optimizers(self) -> Any:
        return sgd([p for p in self.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    "first", [pytest.param(True, marks=pytest.mark.slow), False], ids=["finetuning-first", "finetuning-last"]
)
def test_backbone_finetuning_unfreezes_what_is_left(first: bool, tmp_path: Path) -> None:
    """BaseFinetuning adds parameter groups between events, and in the very epoch of one; a stale parameter in one is a
    KeyError there. Whether it stands before or behind does not matter. A fit that resumes from before the unfreezing
    ends with the same bits; from after it, Lightning freezes the backbone again, with or without pruning."""

    def fit(ckpt_path: Path | None = None) -> Transfer:
        torch.manual_seed(2)
        module, sound = Transfer(), Sound()
        both = [BackboneFinetuning(2, verbose=False), pruning((1, 2, 3))]
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        run = trainer(*(both if first else both[::-1]), sound, keep, epochs=5, enable_checkpointing=True)
        run.fit(module, loader(), ckpt_path=ckpt_path)
        assert len(run.optimizers[0].param_groups) == 2
        assert sound.events == (3 if ckpt_path is None else sound.events)
        return module

    whole = fit()
    assert not same(whole.backbone, Transfer().backbone)
    for epoch in (0, 1):
        assert same(fit(tmp_path / f"epoch={epoch}.ckpt"), whole), epoch


def others(folder: Path) -> list[pl.Callback]:
    return [
        averaging(),
        EarlyStopping("val/loss", patience=9),
        LearningRateMonitor(),
        GradientAccumulationScheduler({0: 1, 2: 2}),
        ModelCheckpoint(folder, "{epoch}", monitor="val/loss", save_top_k=-1),
        ModelSummary(),
        Timer(),
        TQDMProgressBar(),
    ]


def test_the_place_in_the_list_does_not_matter(tmp_path: Path) -> None:
    """First, last or between the others: the same weights, averages and checkpoints."""
    ends = []
    for place in (0, 4, 8):
        torch.manual_seed(4)
        callbacks, module = others(tmp_path / str(place)), TinyModule()
        callbacks.insert(place, pruning((1, 2)))
        options: dict[str, Any] = dict.fromkeys(
            ["enable_checkpointing", "enable_model_summary", "enable_progress_bar"], True
        )
        log = CSVLogger(tmp_path, name=str(place))
        trainer(*callbacks, logger=log, epochs=4, **options).fit(module, loader(), loader())
        ends.append(module)
        assert widths(module)[0] < 12
        assert len(list((tmp_path / str(place)).glob("epoch=?.ckpt"))) == 4
    assert all(same(ends[0], end) for end in ends[1:])
    for epoch in range(4):
        files = [tmp_path / str(place) / f"epoch={epoch}.ckpt" for place in (0, 4, 8)]
        weights = [torch.load(file, weights_only=True)["state_dict"] for file in files]
        for name, value in weights[0].items():
            assert all(torch.equal(value, other[name]) for other in weights[1:]), (epoch, name)
