"""A U-Net with skip concatenations and batch norm; the weights that count are an exponential moving average."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Discs(Dataset):  # type: ignore[type-arg]
    """Bright discs on noise, and their masks."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        x, y, radius = (torch.rand(3, generator=generator) * torch.tensor([16, 16, 4]) + 1).tolist()
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        mask = ((rows - x) ** 2 + (columns - y) ** 2 < radius**2).float()[None]
        return mask + 0.3 * torch.randn(1, 16, 16, generator=generator), mask


class DoubleConv(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Up(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels_in, channels_in // 2, 2, stride=2)
        self.conv = DoubleConv(channels_in, channels_out)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inc = DoubleConv(1, width)
        self.down1 = DoubleConv(width, 2 * width)
        self.down2 = DoubleConv(2 * width, 4 * width)
        self.up1 = Up(4 * width, 2 * width)
        self.up2 = Up(2 * width, width)
        self.outc = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.inc(x)
        second = self.down1(F.max_pool2d(first, 2))
        x = self.down2(F.max_pool2d(second, 2))
        return self.outc(self.up2(self.up1(x, second), first))


class Segmentation(pl.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.unet = UNet(width)
        self.register_buffer("positive", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unet(x)

    def loss(self, batch: Any) -> torch.Tensor:
        image, mask = batch
        return F.binary_cross_entropy_with_logits(self(image), mask, pos_weight=self.positive)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)]


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Discs(32, 0), 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Discs(8, 1), 8)

    def test_dataloader(self) -> Any:
        return DataLoader(Discs(8, 2), 8)


make_model = Segmentation
make_data = Data


def make_callbacks(folder: Any) -> list[Any]:
    checkpoint = pl.callbacks.ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1)
    average = getattr(pl.callbacks, "EMAWeightAveraging", None)  # since Lightning 2.6
    return [checkpoint] if average is None else [average(decay=0.9), checkpoint]


def example() -> torch.Tensor:
    return torch.zeros(2, 1, 16, 16)
