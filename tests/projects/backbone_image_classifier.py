"""The image classifier of Lightning's own examples, as a user would type it; random digits instead of a download."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split


class Backbone(torch.nn.Module):
    def __init__(self, hidden_dim: int = 128) -> None:
        super().__init__()
        self.l1 = torch.nn.Linear(28 * 28, hidden_dim)
        self.l2 = torch.nn.Linear(hidden_dim, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(x.size(0), -1)
        x = torch.relu(self.l1(x))
        return torch.relu(self.l2(x))


class LitClassifier(pl.LightningModule):
    def __init__(self, backbone: Backbone | None = None, learning_rate: float = 0.0001) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone"])
        if backbone is None:
            backbone = Backbone()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # use forward for inference/predictions
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        self.log("valid_loss", loss, on_step=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        self.log("test_loss", loss)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int | None = None) -> torch.Tensor:
        x, _ = batch
        return self(x)

    def configure_optimizers(self) -> Any:
        # self.hparams available because we called self.save_hyperparameters()
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


class MyDataModule(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(160, 1, 28, 28, generator=generator)
        dataset = TensorDataset(images, torch.randint(10, (160,), generator=generator))
        self.mnist_train, self.mnist_val, self.mnist_test = random_split(dataset, [96, 32, 32], generator=generator)
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(self.mnist_train, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(self.mnist_val, batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.mnist_test, batch_size=self.batch_size)

    def predict_dataloader(self) -> Any:
        return DataLoader(self.mnist_test, batch_size=self.batch_size)


make_model = LitClassifier
make_data = MyDataModule


def make_callbacks(folder: Any) -> list[Any]:
    return [pl.callbacks.ModelCheckpoint(folder, "{epoch}", monitor="valid_loss", save_top_k=-1)]


def example() -> torch.Tensor:
    return torch.zeros(2, 1, 28, 28)
