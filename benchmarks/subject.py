"""What criteria are compared on: a trained ResNet-56 and CIFAR-10, cut at the first convolution of every block."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Budget, get_allocation, select
from infoprune.criteria import Scores
from infoprune.data import CIFAR10DataModule
from infoprune.data.augment import draw_views, take_views
from infoprune.data.loader import ImageSet
from infoprune.models import CifarResNet
from infoprune.models.weights import load_weights
from infoprune.structure import PruningPlan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the public weights were trained with
FROZEN = ("conv1", "layer*.conv2")

PADDING = 4
CALIBRATION_IMAGES = 640
RECALIBRATION_IMAGES = 2000
TUNING_IMAGES = 12800
TUNING = {"batch_size": 128, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


class Subject:
    """A trained network, its images, and everything that is done with them, from one seed.

    Args:
        cifar: folder that holds ``cifar-10-batches-py``.
        weights: state dict of a CIFAR ResNet.
        seed: of the choice of images, their augmentation and their order.
        held_out: images that take part in nothing but evaluation: a share of the training images, or 0 to evaluate
            on the test images.
        frozen: patterns of layers that are not cut.
        depth: of the ResNet.
    """

    def __init__(
        self,
        cifar: Path,
        weights: Path,
        seed: int = 0,
        held_out: float = 0.0,
        frozen: Sequence[str] = FROZEN,
        depth: int = 56,
    ) -> None:
        self.model = CifarResNet(depth=depth).eval()
        load_weights(self.model, weights)
        self.structure = infoprune.trace(self.model, torch.zeros(1, 3, 32, 32), frozen=frozen)
        self.data = CIFAR10DataModule(
            str(cifar), mean=MEAN, std=STD, val_fraction=held_out, seed=seed, split_seed=0, download=False
        )
        self.data.setup()
        self.seed = seed
        self.evaluated: ImageSet = self.data.val_set if held_out else self.data.test_set

    def calibration(self) -> Iterable[Any]:
        """Training images for criteria that look at data, as in evaluation."""
        return self.data.calibration_batches(CALIBRATION_IMAGES, batch_size=128)

    def widths(
        self,
        amount: float | None = None,
        allocation: Any = "uniform",
        macs: float | None = None,
        scores: Scores | None = None,
    ) -> dict[str, int]:
        """Kept filters of each group: a share of every group, or an allocation under a budget of MACs."""
        budget = None if macs is None else Budget("macs", macs)
        chosen = get_allocation(allocation).prepared(self.model, self.structure, self.calibration())
        return dict(chosen.widths(self.structure, scores, budget, amount))

    def plan(self, scores: Scores, widths: dict[str, int]) -> PruningPlan:
        """Return the units that go."""
        return select(self.structure, scores, widths)

    def cut(self, plan: PruningPlan) -> nn.Module:
        """Return a pruned copy of the network."""
        pruned = copy.deepcopy(self.model)
        infoprune.shrink(pruned, plan)
        return pruned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def recalibrate(self, model: nn.Module, images: int = RECALIBRATION_IMAGES, augment: bool = True) -> nn.Module:
        """Batch norm from training images, cropped and flipped as in training; in place."""
        infoprune.recalibrate(model, self.data.calibration_batches(images, batch_size=200, augment=augment))
        return model

    def tune(self, model: nn.Module) -> nn.Module:
        """Fine-tune in place: one pass over some training images, SGD, half a cosine down to 0."""
        steps = TUNING_IMAGES // TUNING["batch_size"]
        optimizer = torch.optim.SGD(
            model.parameters(), TUNING["lr"], momentum=TUNING["momentum"], weight_decay=TUNING["weight_decay"]
        )
        model.train()
        batches = self.data.calibration_batches(TUNING_IMAGES, batch_size=int(TUNING["batch_size"]), augment=True)
        for step, (images, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = TUNING["lr"] * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(model(_channels_last(images)), labels).backward()
            optimizer.step()
        return model.eval()

    def accuracy(self, model: nn.Module, images: int | None = None, views: bool = False) -> float:
        """Per cent of the evaluated images that are classified rightly; the first so many of them, or all.

        ``views``: cropped and flipped as in training, the same for every model.
        """
        model.eval()
        data = self.evaluated
        count = len(data.labels) if images is None else images
        drawn = draw_views(count, PADDING, True, torch.Generator().manual_seed(self.seed)) if views else None
        right = 0
        with torch.no_grad():
            for start in range(0, count, 50):
                part = slice(start, min(start + 50, count))
                shown = data.images[part] if drawn is None else take_views(data.images[part], drawn[part], PADDING)
                outputs = model(_channels_last(self.data.normalize(shown)))
                right += int((outputs.argmax(dim=1) == data.labels[part]).sum())
        return 100 * right / count


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
