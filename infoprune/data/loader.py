"""Batches of an image set that lies in memory: one slice of two tensors each, no workers, no collation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infoprune.data.augment import draw_views
from infoprune.errors import ConfigurationError, DataError


class ImageSet(NamedTuple):
    """Images and their classes.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
    """

    images: Tensor
    labels: Tensor

    def subset(self, index: Tensor) -> ImageSet:
        """Return the images at ``index``.

        Args:
            index: (n,) indices.
        """
        index = index.to(self.images.device)
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> ImageSet:
        """Return the images and labels on a device.

        Args:
            device: the device.
        """
        return ImageSet(self.images.to(device), self.labels.to(device))


class EpochBatches:
    """Index tensors of the batches of one process, epoch after epoch.

    The images (shuffled by seed and epoch) are cut into global batches whose sizes differ by at most one image, and
    every process takes its share of each. So no image is dropped or seen twice, no epoch ends on a tiny batch, all
    processes take the same number of steps, and two processes with batches of 64 see what one with 128 sees.

    Args:
        count: Number of images.
        batch_size: Largest batch of one process.
        shuffle: New order in every epoch.
        seed: Of the order and of everything drawn per image.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ConfigurationError: ``batch_size`` below 1.
        DataError: fewer images than processes.

    >>> [batch.tolist() for batch in EpochBatches(5, batch_size=2, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self, count: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: must be at least 1")
        if count < world_size:
            raise DataError(f"{count} images cannot be shared by {world_size} processes; use fewer processes")
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.epoch_given = False
        wanted = -(-count // (batch_size * world_size))
        self.batches = min(wanted, count // world_size)  # never so many that a process has no share of a batch

    def __len__(self) -> int:
        return self.batches

    @property
    def sampler(self) -> EpochBatches:
        """Itself: the Trainer looks for ``set_epoch`` at ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; the Trainer calls this before each.

        Args:
            epoch: number of the epoch.
        """
        self.epoch = epoch
        self.epoch_given = True

    def generator(self) -> torch.Generator:
        """Return a fresh source of randomness for this epoch, the same in all processes."""
        # a large odd factor keeps (seed, epoch) pairs apart; torch seeds are 64 bits wide
        return torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + self.epoch) % 2**63)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the images in the order of this epoch, ``(count,)``.

        Args:
            generator: seeded for the epoch.
        """
        return torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)

    def shares(self, order: Tensor) -> list[Tensor]:
        """Return this process's share of every batch.

        Args:
            order: (count,) images in the order of the epoch.
        """
        return [batch[self.rank :: self.world_size] for batch in order.tensor_split(self.batches)]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.shares(self.order(self.generator())))


class TensorLoader:
    """Iterate over an `ImageSet` in batches; the Trainer takes it like a DataLoader.

    A batch is ``(images, labels)``, or ``(images, labels, views)`` with the draws of
    `infoprune.data.augment.draw_views` where images are to be augmented. The Trainer sets the epoch; without it every
    pass is the next epoch.

    The position within the epoch is part of the Trainer's checkpoints (``state_dict``), so that a run which was stopped
    in the middle of an epoch goes on with the next batch, not with a new epoch. (The Trainer forgets it where a module
    asks for ``estimated_stepping_batches`` in ``configure_optimizers``; `ImageClassifier` does not.)

    Args:
        data: The images.
        batches: Which images make up which batch.
        padding: Largest shift of an image in pixels, for the draws.
        flip: Mirror half of the images.
        augment: Add draws to the batches.
    """

    def __init__(
        self, data: ImageSet, batches: EpochBatches, padding: int = 0, flip: bool = False, augment: bool = False
    ) -> None:
        self.data = data
        self.batch_sampler = batches
        self.padding = padding
        self.flip = flip
        self.augment = augment
        self._position = (0, 0)  # epoch, batches already given out
        self._resume: tuple[int, int] | None = None
        self._started = False

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # A generator: nothing below runs before the first batch is asked for, hence after set_epoch.
        epoch, start = self._start()
        generator = self.batch_sampler.generator()
        order = self.batch_sampler.order(generator)
        views = draw_views(len(order), self.padding, self.flip, generator) if self.augment else None
        for batch, index in enumerate(self.batch_sampler.shares(order)[start:], start):
            self._position = (epoch, batch + 1)
            images, labels = self.data.subset(index)
            yield (images, labels) if views is None else (images, labels, views[index])

    def _start(self) -> tuple[int, int]:
        """Return epoch and first batch of the pass that begins."""
        resumed, self._resume = self._resume, None
        if self._started and resumed is None and not self.batch_sampler.epoch_given:
            self.batch_sampler.epoch += 1  # no other code counts the epochs
        self._started = True
        epoch = self.batch_sampler.epoch
        return epoch, resumed[1] if resumed is not None and resumed[0] == epoch else 0

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and number of its batches already given out."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass over the same epoch begin after the batches already returned."""
        self._position = self._resume = (int(state["epoch"]), int(state["batch"]))
        self.batch_sampler.epoch = self._resume[0]
