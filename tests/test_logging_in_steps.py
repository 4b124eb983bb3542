"""Training steps that log to W&B by themselves, and modules that it watches, log what they do without pruning."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import wandb
from torch import Tensor, nn

from tests.tiny import loader, pruning, trainer


class LogsByItself(pl.LightningModule):
    """Calls ``wandb.log`` in its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        wandb.log({"loss": loss.item()})
        assert wandb.run is not None
        wandb.run.log({"again": loss.item()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_what_a_step_logs_to_wandb_by_itself_is_what_it_logs_without_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, run = LogsByItself(), wandb.init(project="test", mode="offline", dir=tmp_path)
    run.watch(module, log="all", log_freq=1)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    steps = run.step
    run.finish()
    assert module.net[0].out_channels < 8
    assert steps == 2 * 2 * 3, "two calls for each of three batches in two epochs"
