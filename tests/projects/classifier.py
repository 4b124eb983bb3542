"""A plain image classifier: torchmetrics, Adam with OneCycle, a datamodule, hyperparameters in the checkpoint."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Shapes(pl.LightningDataModule):
    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(4, (96,), generator=generator)
        images = torch.randn(96, 3, 16, 16, generator=generator) + labels[:, None, None, None] / 4
        self.train, self.val, self.test = random_split(TensorDataset(images, labels), [64, 16, 16], generator=generator)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, self.batch_size)


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class Classifier(pl.LightningModule):
    def __init__(self, num_classes: int = 4, width: int = 8, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            block(3, width), block(width, 2 * width), nn.MaxPool2d(2), block(2 * width, 4 * width), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * width * 16, 32), nn.ReLU(), nn.Linear(32, num_classes)
        )
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Any, stage: str) -> None:
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log(f"{stage}_loss", F.cross_entropy(logits, y))
        self.log(f"{stage}_acc", self.accuracy, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams["lr"], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


make_model = Classifier
make_data = Shapes


def make_callbacks(folder: Any) -> list[Any]:
    return [pl.callbacks.ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1)]


def example() -> torch.Tensor:
    return torch.zeros(2, 3, 16, 16)
