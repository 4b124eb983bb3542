"""Eight small projects in the manner of public ones, each used with the callback line alone.

Detection, segmentation with dict batches, volumes, BYOL, a GAN, an average for evaluation, an optimizer made in the
constructor, separation of sounds. None of them knows of pruning.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Items(Dataset[Any]):
    """What a function makes of the numbers 0 to 15, from random numbers of their own."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return self.make(index, torch.Generator().manual_seed(index))


def conv_block(kind: type[nn.Module], norm: type[nn.Module], inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(kind(inputs, outputs, 3, stride=stride, padding=1), norm(outputs), nn.ReLU())


# -- a detector in the manner of torchvision's: lists in, losses in train mode, lists of dicts in eval mode ------------


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv_block(nn.Conv2d, nn.BatchNorm2d, 3, 16, 2), conv_block(nn.Conv2d, nn.BatchNorm2d, 16, 32, 2)
        )
        self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 3, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        assert isinstance(images, (list, tuple))
        features = self.backbone(torch.stack(list(images)))
        boxes, scores = self.boxes(features).mean((2, 3)), self.scores(features).mean((2, 3))
        if not self.training:
            return [{"boxes": box[None], "scores": score} for box, score in zip(boxes, scores, strict=True)]
        assert targets is not None
        return {
            "box": F.l1_loss(boxes, torch.stack([target["box"] for target in targets])),
            "class": F.cross_entropy(scores, torch.stack([target["label"] for target in targets])),
        }


def scene(index: int, generator: torch.Generator) -> Any:
    target = {"box": torch.rand(4, generator=generator), "label": torch.tensor(index % 3)}
    return torch.rand(3, 16, 16, generator=generator), target


class DetectionProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.detector(images, targets)
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        return sum(losses.values(), torch.zeros(()))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.detector.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return DataLoader(Items(scene), batch_size=4, collate_fn=lambda items: tuple(zip(*items, strict=True)))


# -- segmentation with dict batches, in the manner of segmentation-models-pytorch's example ----------------------------


class UNet(nn.Module):
    def __init__(self, kind: type[nn.Module], norm: type[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.down1 = conv_block(kind, norm, channels, 16)
        self.down2 = conv_block(kind, norm, 16, 32, 2)
        self.up = conv_block(kind, norm, 48, 16)
        self.head = kind(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = F.interpolate(self.down2(fine), size=fine.shape[2:])
        return self.head(self.up(torch.cat([fine, coarse], 1)))


class PetProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = UNet(nn.Conv2d, nn.BatchNorm2d, 3, 1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.outputs: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image - self.mean)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.binary_cross_entropy_with_logits(self.forward(batch["image"]), batch["mask"])
        self.outputs.append(loss.detach())
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", torch.stack(self.outputs).mean())
        self.outputs.clear()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        def pet(index: int, generator: torch.Generator) -> Any:
            image = torch.rand(3, 16, 16, generator=generator)
            return {"image": image, "mask": (image[:1] > 0.5).float(), "filename": f"{index}.png"}

        return DataLoader(Items(pet), batch_size=8)


# -- volumes, in the manner of MONAI's spleen tutorial: the network under a leading underscore, a loss module ----------


class VolumeProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self._model = UNet(nn.Conv3d, nn.BatchNorm3d, 1, 2)
        self.loss_function = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self._model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss_function(self.forward(batch["image"]), batch["label"])
        return {"loss": loss, "log": {"train_loss": loss.item()}}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self._model.parameters(), 1e-3)

    def train_dataloader(self) -> Any:
        def scan(index: int, generator: torch.Generator) -> Any:
            volume = torch.rand(1, 8, 8, 8, generator=generator)
            return {"image": volume, "label": (volume[0] > 0.5).long()}

        return DataLoader(Items(scan), batch_size=4)


# -- BYOL, in the manner of lightly: the heads stand outside of forward, momentum copies are updated in the step -------


@dataclass
class Views:
    first: Tensor
    second: Tensor


class ByolProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv_block(nn.Conv2d, nn.BatchNorm2d, 3, 16),
            conv_block(nn.Conv2d, nn.BatchNorm2d, 16, 24, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.projection_head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 12))
        self.prediction_head = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 12))
        self.backbone_momentum = copy.deepcopy(self.backbone).requires_grad_(False)
        self.projection_head_momentum = copy.deepcopy(self.projection_head).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x)))

    @torch.no_grad()
    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    @torch.no_grad()
    def update_momentum(self, online: nn.Module, average: nn.Module) -> None:
        for ours, theirs in zip(average.parameters(), online.parameters(), strict=True):
            ours.data = ours.data * 0.9 + theirs.data * 0.1

    def training_step(self, batch: Views, batch_idx: int) -> Tensor:
        self.update_momentum(self.backbone, self.backbone_momentum)
        self.update_momentum(self.projection_head, self.projection_head_momentum)
        first = F.cosine_similarity(self.forward(batch.first), self.forward_momentum(batch.second)).mean()
        return -first - F.cosine_similarity(self.forward(batch.second), self.forward_momentum(batch.first)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)

    def train_dataloader(self) -> Any:
        def views(index: int, generator: torch.Generator) -> Tensor:
            return torch.rand(3, 12, 12, generator=generator)

        def collate(items: list[Tensor]) -> Views:
            images = torch.stack(items)
            return Views(images, images.flip(3))

        return DataLoader(Items(views), batch_size=8, collate_fn=collate)


# -- a GAN in the manner of Lightning's example: manual optimization, two optimizers, forward is the generator ---------


class GanProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(8, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, _ = batch
        of_generator, of_discriminator = self.optimizers()
        z = torch.randn(len(images), 8, 1, 1, device=self.device)
        self.toggle_optimizer(of_generator)
        fooled = self.discriminator(self(z))
        loss = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        self.log("g_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        of_generator.step()
        of_generator.zero_grad()
        self.untoggle_optimizer(of_generator)
        self.toggle_optimizer(of_discriminator)
        real, fake = self.discriminator(images), self.discriminator(self(z).detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        self.manual_backward(loss)
        of_discriminator.step()
        of_discriminator.zero_grad()
        self.untoggle_optimizer(of_discriminator)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 2e-4) for part in (self.generator, self.discriminator)], []

    def train_dataloader(self) -> Any:
        return DataLoader(Items(lambda i, g: (torch.rand(3, 8, 8, generator=g), i % 2)), batch_size=8)


# -- one network is trained, its average is evaluated ------------------------------------------------------------------


class AverageProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            conv_block(nn.Conv2d, nn.BatchNorm2d, 3, 16),
            conv_block(nn.Conv2d, nn.BatchNorm2d, 16, 16, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        self.average = copy.deepcopy(self.online)

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x) if self.training else self.average(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for ours, theirs in zip(self.average.parameters(), self.online.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.online.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(Items(lambda i, g: (torch.rand(3, 8, 8, generator=g), i % 3)), batch_size=8)


# -- separation of sounds in the manner of asteroid's System: everything is made outside and handed in -----------------


class Separator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 24, 8, stride=4)
        self.masker = nn.Sequential(nn.Conv1d(24, 32, 1), nn.PReLU(), nn.Conv1d(32, 48, 3, padding=1))
        self.decoder = nn.ConvTranspose1d(24, 1, 8, stride=4)

    def forward(self, wav: Tensor) -> Tensor:
        encoded = self.encoder(wav[:, None])
        masks = self.masker(encoded).view(len(wav), 2, -1, encoded.shape[-1]).sigmoid()
        return self.decoder((masks * encoded[:, None]).flatten(0, 1)).view(len(wav), 2, -1)


class SeparationProject(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Separator()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def common_step(self, batch: Any, batch_nb: int, train: bool = True) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self(inputs), targets)

    def training_step(self, batch: Any, batch_nb: int) -> Tensor:
        return self.common_step(batch, batch_nb, train=True)

    def configure_optimizers(self) -> Any:
        return [self.optimizer], [self.scheduler]

    def train_dataloader(self) -> Any:
        def mixture(index: int, generator: torch.Generator) -> Any:
            sources = torch.randn(2, 64, generator=generator)
            return sources.sum(0), sources

        return DataLoader(Items(mixture), batch_size=8, drop_last=True)


# -- in the manner of lightning-hydra-template: network, optimizer and scheduler come as partial functions -------------


class HydraProject(pl.LightningModule):
    def __init__(self, net: nn.Module, optimizer: Any, compile: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def model_step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self.forward(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, preds, targets = self.model_step(batch)
        self.log("train/acc", (preds == targets).float().mean(), on_epoch=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        _, preds, targets = self.model_step(batch)
        self.log("test/acc", (preds == targets).float().mean())

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.hparams.optimizer(params=self.trainer.model.parameters())}

    def train_dataloader(self) -> Any:
        return DataLoader(Items(lambda i, g: (torch.rand(3, 8, 8, generator=g), i % 3)), batch_size=8)

    test_dataloader = train_dataloader
