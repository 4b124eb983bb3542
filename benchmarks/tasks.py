"""Trained networks of several kinds with their data, for `benchmarks.accuracy`: what is pruned, tuned and scored.

CIFAR ResNets start from public weights. VGG-16 with batch norm and MobileNetV2 are trained here for as many steps on
CIFAR-10 as an hour on one core gives. The others are trained in a minute: the quickstart's network on handwritten
digits, a U-Net that segments shapes, and a network that measures a disc. All training starts from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, vgg16_bn

import infoprune
from benchmarks.subject import MEAN, PADDING, STD, TUNING
from infoprune.callbacks.distillation import soft_targets
from infoprune.data import CIFAR10DataModule, DigitsDataModule
from infoprune.data.augment import draw_views, take_views
from infoprune.models import CifarResNet
from infoprune.models.weights import load_weights

CALIBRATION_IMAGES = 640
RECALIBRATION_IMAGES = 2000
EVALUATED_AT_ONCE = 100
TEMPERATURE = 4.0
"""Of distillation."""
CLASSES = 3
"""Of pixels: background, disc, square."""


@dataclass
class Task:
    """A trained network, its images, and everything that is done with them.

    Attributes:
        name: in tables.
        model: the trained network, in eval mode.
        train: training inputs and targets.
        test: the same for the score.
        loss: of outputs and targets.
        score: per cent, of all outputs and targets of the test images; higher is better.
        metric: what the score is called.
        batch: training images in a batch.
        rate: the highest learning rate of fine-tuning.
        normalize: from stored inputs to the network's.
        augment: crop and flip training images.
    """

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    metric: str
    batch: int = 128
    rate: float = float(TUNING["lr"])
    normalize: Callable[[Tensor], Tensor] = torch.Tensor.float
    augment: bool = False

    @property
    def example(self) -> Tensor:
        """One input of the network."""
        return self.normalize(self.test[0][:1])

    @cached_property
    def unpruned(self) -> float:
        """Score of the network before anything is pruned."""
        return self.evaluate(self.model)

    def batches(self, images: int, seed: int, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images in random order, as in training, pass after pass until there were so many."""
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = self.train
        size = batch or self.batch
        order = torch.empty(0, dtype=torch.long)
        for start in range(0, images, size):
            count = min(size, images - start)
            while len(order) < count:
                order = torch.cat([order, torch.randperm(len(targets), generator=generator)])
            index, order = order[:count], order[count:]
            shown = inputs[index]
            if self.augment:
                shown = take_views(shown, draw_views(count, PADDING, True, generator), PADDING)
            yield self.normalize(shown), targets[index]

    def calibration(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return the training images that criteria and allocations look at."""
        return list(self.batches(min(CALIBRATION_IMAGES, len(self.train[1])), seed))

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """Measure batch norm anew, in place."""
        images = min(RECALIBRATION_IMAGES, len(self.train[1]))
        infoprune.recalibrate(model, self.batches(images, seed + 1, batch=200))

    def tune(
        self, model: nn.Module, steps: int, seed: int, rate: float | None = None, warm_up: int = 0, distil: float = 0.0
    ) -> None:
        """Train for so many steps, in place: SGD with momentum and weight decay, half a cosine down to 0.

        Args:
            model: what is left of the network.
            steps: of batches.
            seed: of the images.
            rate: the highest learning rate; None: the task's.
            warm_up: steps in which the rate rises to it.
            distil: share of the loss that is the distance to the unpruned network's class probabilities.
        """
        peak = rate or self.rate
        momentum, decay = float(TUNING["momentum"]), float(TUNING["weight_decay"])
        optimizer = torch.optim.SGD(model.parameters(), peak, momentum=momentum, weight_decay=decay)
        model.train()
        for step, (inputs, targets) in enumerate(self.batches(steps * self.batch, seed + 2)):
            for group in optimizer.param_groups:
                rise = min((step + 1) / (warm_up + 1), 1.0)
                group["lr"] = rise * peak * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            outputs = model(_channels_last(inputs))
            loss = self.loss(outputs, targets)
            if distil:
                with torch.no_grad():
                    taught = self.model(inputs)
                loss = (1 - distil) * loss + distil * soft_targets(outputs, taught, TEMPERATURE)
            loss.backward()
            optimizer.step()
        model.eval()

    def evaluate(self, model: nn.Module, images: int | None = None) -> float:
        """Return the score on the first so many test images, or on all."""
        model.eval()
        inputs, targets = (part[:images] for part in self.test)
        with torch.no_grad():
            outputs = [model(_channels_last(self.normalize(part))) for part in inputs.split(EVALUATED_AT_ONCE)]
        return self.score(torch.cat(outputs), targets)


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Measure the share of inputs that are classified rightly, in per cent."""
    return 100 * (outputs.argmax(dim=1) == targets).float().mean().item()


def mean_iou(outputs: Tensor, targets: Tensor) -> float:
    """Intersection over union of the pixels of a class, mean over classes, in per cent."""
    found = outputs.argmax(dim=1)
    shares = []
    for label in range(CLASSES):
        both, either = (found == label) & (targets == label), (found == label) | (targets == label)
        shares.append((both.sum() / either.sum()).item())
    return 100 * sum(shares) / CLASSES


def explained(outputs: Tensor, targets: Tensor) -> float:
    """Explained variance (R²), mean over targets, in per cent."""
    rest, whole = (outputs - targets).square().mean(dim=0), targets.var(dim=0, unbiased=False)
    return 100 * (1 - rest / whole).mean().item()


def shapes(count: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Draw noisy images, each of a disc and a square that covers part of it.

    Returns:
        (count, 1, size, size) images; (count, size, size) classes of the pixels; (count, 3) centre and radius of
        the disc in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 8, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre, radius = 6 + drawn[:, 0:2] * (size - 12), 3 + drawn[:, 2] * 5
    corner, side = drawn[:, 3:5] * (size - 8), 4 + drawn[:, 5] * 6
    disc = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 <= radius**2
    square = (rows >= corner[:, 0]) & (rows < corner[:, 0] + side)
    square &= (columns >= corner[:, 1]) & (columns < corner[:, 1] + side)
    labels = torch.where(square, 2, disc.long())
    shade = torch.where(square, 0.4 + 0.6 * drawn[:, 6], torch.where(disc, 0.4 + 0.6 * drawn[:, 7], torch.zeros(())))
    images = shade + 0.3 * torch.randn(count, size, size, generator=generator)
    target = torch.stack([centre[:, 0], centre[:, 1], radius], dim=1)[..., 0, 0]
    return images[:, None], labels, 2 * (target - torch.tensor([0, 0, 3])) / torch.tensor([size, size, 5]) - 1


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with batch norm."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of three resolutions. ``(N, 1, H, W)`` to class scores ``(N, CLASSES, H, W)``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = block(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.up2(self.bottom(F.max_pool2d(second, 2)))
        x = self.up1(self.merge2(torch.cat([x, second], dim=1)))
        return self.head(self.merge1(torch.cat([x, first], dim=1)))


class Measurer(nn.Module):
    """A plain convolutional network. ``(N, 1, 32, 32)`` to ``(N, 3)``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(1, 16), nn.MaxPool2d(2), block(16, 32), nn.MaxPool2d(2), block(32, 64))
        self.head = nn.Sequential(nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.features(x), 2).flatten(1))


def cifar10(name: str, model: nn.Module, folder: Path, held_out: float = 0.0) -> Task:
    """Build a classifier's task, scored on test images or held-out training images."""
    data = CIFAR10DataModule(str(folder), mean=MEAN, std=STD, val_fraction=held_out, download=False)
    data.setup()
    train, test = ((part.images, part.labels) for part in (data.train_set, data.val_set))
    return Task(name, model, train, test, F.cross_entropy, accuracy, "accuracy", normalize=data.normalize, augment=True)


def resnet(depth: int, cifar: Path, weights: Path, held_out: float = 0.0) -> Task:
    """Build a CIFAR ResNet with its public weights."""
    model = CifarResNet(depth).eval()
    load_weights(model, weights / f"resnet{depth}.pt")
    return cifar10(f"resnet{depth}", model, cifar, held_out)


def vgg(cifar: Path, folder: Path) -> Task:
    """Build VGG-16 with batch norm and one linear layer behind its convolutions, trained for 1.5 epochs."""
    torch.manual_seed(0)
    model = nn.Sequential(vgg16_bn(num_classes=10).features, nn.Flatten(), nn.Linear(512, 10))
    return trained(cifar10("vgg16_bn", model, cifar), 1200, 0.02, folder, batch=64, warm_up=60)


def mobilenet(cifar: Path, folder: Path) -> Task:
    """Build MobileNetV2 for images of 32 by 32, whose first two strides are 1, trained for 2 epochs."""
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=10)
    model.features[0][0].stride = model.features[2].conv[1][0].stride = (1, 1)
    return trained(cifar10("mobilenet_v2", model, cifar), 1600, 0.05, folder, batch=64, warm_up=60)


def trained(task: Task, steps: int, rate: float, folder: Path, batch: int | None = None, warm_up: int = 0) -> Task:
    """Train the network of a task, once; in batches of another size than fine-tuning's, where one is given."""
    path = folder / f"{task.name}.pt"
    if path.exists():
        task.model.load_state_dict(torch.load(path, weights_only=True))
    else:
        task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        replace(task, batch=batch or task.batch).tune(task.model, steps, seed=0, rate=rate, warm_up=warm_up)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(task.model.state_dict(), path)
    task.model.eval()
    return task


def digits(folder: Path) -> Task:
    """Build the quickstart's network and data."""
    torch.manual_seed(0)
    data = DigitsDataModule(val_fraction=0.0)
    data.setup()
    train, test = ((part.images, part.labels) for part in (data.train_set, data.test_set))
    model = CifarResNet(14, in_channels=1)
    task = Task("digits", model, train, test, F.cross_entropy, accuracy, "accuracy", batch=64, normalize=data.normalize)
    return trained(task, 600, 0.1, folder)


def unet(folder: Path) -> Task:
    """Build a U-Net that tells discs and squares from the background."""
    torch.manual_seed(0)
    (inputs, labels, _), (test_inputs, test_labels, _) = shapes(4000, 0), shapes(500, 1)
    train, test = (inputs, labels), (test_inputs, test_labels)
    task = Task("unet", UNet(), train, test, F.cross_entropy, mean_iou, "mean IoU", batch=32)
    return trained(task, 600, 0.1, folder)


def measurer(folder: Path) -> Task:
    """Build a network that measures the disc."""
    torch.manual_seed(0)
    (inputs, _, targets), (test_inputs, _, test_targets) = shapes(4000, 0), shapes(500, 1)
    train, test = (inputs, targets), (test_inputs, test_targets)
    task = Task("measurer", Measurer(), train, test, F.mse_loss, explained, "R²", batch=64)
    return trained(task, 600, 0.05, folder)


def makers(cifar: Path, weights: Path, folder: Path) -> dict[str, Callable[[], Task]]:
    """Every task by name; made when it is called."""
    return {
        "resnet56": partial(resnet, 56, cifar, weights),
        "resnet20": partial(resnet, 20, cifar, weights),
        "vgg16_bn": partial(vgg, cifar, folder),
        "mobilenet_v2": partial(mobilenet, cifar, folder),
        "digits": partial(digits, folder),
        "unet": partial(unet, folder),
        "measurer": partial(measurer, folder),
    }
