"""A project as a user would have it: its own LightningModule and datamodule, that know nothing of infoprune."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def blobs(count: int) -> TensorDataset:
    """Images whose class is where their bright corner is: learnt in one epoch."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    return TensorDataset(images, labels)


class UserModule(L.LightningModule):
    def __init__(self, width: int = 8, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width * 36, 4)
        self.lr = lr

    def forward(self, x):
        return self.head(self.features(x).flatten(1))

    def _step(self, name, batch):
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": (logits.argmax(1) == y).float().mean()})
        return loss

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        self._step("val", batch)

    def test_step(self, batch, batch_idx):
        self._step("test", batch)

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class UserData(L.LightningDataModule):
    def __init__(self, count: int = 64) -> None:
        super().__init__()
        self.count = count

    def _loader(self):
        return DataLoader(blobs(self.count), batch_size=16)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class SelfContained(UserModule):
    """Brings its own data, so that no datamodule is given."""

    def train_dataloader(self):
        return DataLoader(blobs(32), batch_size=16)
