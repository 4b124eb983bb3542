"""A learning-rate schedule that takes its length from the Trainer."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from infoprune.errors import ConfigurationError


class WarmupCosineLR(LRScheduler):
    """Linear warm-up, then half a cosine down to ``min_lr``, both measured in epochs.

    With warm-up of ``W`` epochs, ``T`` epochs in all and ``e`` epochs gone, the rate is ``lr * (e + s) / W`` while
    ``e < W`` (``s``: the part of an epoch that one step makes), then
    ``min_lr + (lr - min_lr) * (1 + cos(pi * (e - W) / (T - W))) / 2``. Without warm-up this is torch's
    ``CosineAnnealingLR``.

    Only the position is kept in checkpoints: a run that is resumed with more epochs follows the longer curve.

    Args:
        optimizer: The optimizer whose parameter groups are driven.
        epochs: Length of the whole schedule; None: `ImageClassifier` fills in the Trainer's ``max_epochs``.
        warmup_epochs: Length of the warm-up, may be a fraction of an epoch when stepped on every batch.
        min_lr: Rate at the end.
        steps_per_epoch: How often ``step`` is called in an epoch; `ImageClassifier` fills it in.

    Raises:
        ConfigurationError: the warm-up is as long as the schedule, or a step is taken while the length is unknown.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = WarmupCosineLR(optimizer, epochs=6, warmup_epochs=2)
    >>> rates = []
    >>> for _ in range(6):
    ...     rates.append(round(scheduler.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: float | None = None,
        warmup_epochs: float = 0.0,
        min_lr: float = 0.0,
        steps_per_epoch: int = 1,
    ) -> None:
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.min_lr = min_lr
        self.steps_per_epoch = steps_per_epoch
        self._check()
        super().__init__(optimizer)

    def follow(self, epochs: float, steps_per_epoch: int = 1) -> None:
        """Take the length of the run: ``epochs`` unless given to the constructor, and the steps in an epoch."""
        self.epochs = epochs if self.epochs is None else self.epochs
        self.steps_per_epoch = steps_per_epoch
        self._check()
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr  # the first rate of a warm-up depends on the steps in an epoch
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _check(self) -> None:
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ConfigurationError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of a schedule of {self.epochs} epochs; "
                "make the warm-up shorter or train for longer"
            )

    def get_lr(self) -> list[float | Tensor]:
        """Return rates of the parameter groups at the current position."""
        gone = self.last_epoch / self.steps_per_epoch
        if gone < self.warmup_epochs:
            share = (gone + 1 / self.steps_per_epoch) / self.warmup_epochs
            return [lr * min(1.0, share) for lr in self.base_lrs]
        if self.epochs is None:
            if self.last_epoch == 0:
                return list(self.base_lrs)
            raise ConfigurationError("WarmupCosineLR does not know how long the run is; give it epochs")
        progress = min(1.0, (gone - self.warmup_epochs) / (self.epochs - self.warmup_epochs))
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return [self.min_lr + (lr - self.min_lr) * cosine for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule; the shape of the curve belongs to the config."""
        shape = {"epochs", "warmup_epochs", "min_lr", "steps_per_epoch"}
        return {key: value for key, value in super().state_dict().items() if key not in shape}
