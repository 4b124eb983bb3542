"""A convolutional GAN: two networks, two optimizers, manual optimization, a generator that is called by name."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Generator(nn.Module):
    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(latent, 4 * width * 4 * 4)
        self.net = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.net(self.project(z).view(z.shape[0], -1, 4, 4))


class Discriminator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


class GAN(pl.LightningModule):
    def __init__(self, latent: int = 12, width: int = 6, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(latent, width)
        self.discriminator = Discriminator(width)
        self.register_buffer("validation_z", torch.randn(4, latent))
        self.example_input_array = torch.zeros(2, latent)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.generator(z)

    def adversarial_loss(self, y_hat: torch.Tensor, real: bool) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(y_hat, torch.full_like(y_hat, float(real)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, _ = batch
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[misc]
        z = torch.randn(images.shape[0], self.hparams["latent"]).type_as(images)

        self.toggle_optimizer(optimizer_g)
        loss = self.adversarial_loss(self.discriminator(self(z)), True)
        self.log("g_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real = self.adversarial_loss(self.discriminator(images), True)
        fake = self.adversarial_loss(self.discriminator(self(z).detach()), False)
        loss = (real + fake) / 2
        self.log("d_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.discriminator(self(self.validation_z)).mean())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(net.parameters(), lr=self.hparams["lr"], betas=(0.5, 0.999))
            for net in (self.generator, self.discriminator)
        ]


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        images = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return DataLoader(TensorDataset(images, torch.zeros(32)), 8, shuffle=True)

    test_dataloader = train_dataloader


make_model = GAN
make_data = Data


def make_callbacks(folder: Any) -> list[Any]:
    return [pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]


def example() -> torch.Tensor:
    return torch.zeros(2, 12)
