"""What all image data modules share, and the ones that keep their images in memory."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from infoprune.data.augment import draw_views, take_views
from infoprune.data.calibration import CalibrationBatches
from infoprune.data.loader import EpochBatches, ImageSet, TensorLoader
from infoprune.data.split import stratified_split
from infoprune.errors import ConfigurationError, DataError


class ImageDataModule(L.LightningDataModule):
    """Base of the image data modules: batches leave the loader as uint8 and are normalised on the device.

    Args:
        batch_size: Training images in a batch of one process.
        eval_batch_size: The same for validation, test and prediction; None: ``batch_size``.
        mean: Mean of each channel of images in [0, 1], subtracted; None: the data set's own.
        std: Standard deviation of each channel, divided by; None: the data set's own.
        seed: Of the order of the images and their augmentation; None: the run's (``seed_everything``), else 0.

    Attributes:
        num_classes: Number of classes.
        input_shape: ``(C, H, W)`` of an image.
    """

    default_mean: ClassVar[tuple[float, ...]]
    default_std: ClassVar[tuple[float, ...]]
    num_classes: int
    input_shape: tuple[int, int, int]

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.mean = _per_channel("mean", mean, self.default_mean)
        self.std = _per_channel("std", std, self.default_std)
        if min(self.std) <= 0:
            raise ConfigurationError(f"std={self.std}: every value must be above 0")
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 ``(N, C, H, W)`` into floats of zero mean and unit deviation, in the precision of the model.

        Args:
            images: (N, C, H, W) uint8 images.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        dtype = module.dtype if module is not None and isinstance(module.dtype, torch.dtype) else torch.float32
        # in float32 first: 255 levels do not survive bfloat16 arithmetic
        mean, std = (torch.tensor(value, device=images.device).view(-1, 1, 1) * 255 for value in (self.mean, self.std))
        return images.float().sub_(mean).div_(std).to(dtype)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (training batches carry their draws) and normalise, on the device."""
        if isinstance(batch, Tensor):
            return batch  # the Trainer sends the module's example input through here too
        images, labels = batch
        return self.normalize(images), labels

    @abstractmethod
    def calibration_batches(
        self, n_images: int, batch_size: int | None = None, augment: bool = False, device: torch.device | str = "cpu"
    ) -> CalibrationBatches:
        """Return a fixed random sample of training images, normalised, for data-driven criteria and batch norm.

        The same images for the same seed, in every process. Call ``setup("fit")`` first where no Trainer did.

        Args:
            n_images: Number of images.
            batch_size: Images in a batch; None: ``eval_batch_size``.
            augment: Show them as in training (random crop, flip) instead of as in evaluation.
            device: Where the batches go.

        Raises:
            DataError: there are fewer training images than that.
        """

    def _calibration_sample(self, n_images: int, available: int) -> Tensor:
        """Return the indices of ``n_images`` training images."""
        if not 1 <= n_images <= available:
            raise DataError(f"asked for {n_images} calibration images; the training set has {available}")
        return torch.randperm(available, generator=torch.Generator().manual_seed(self.seed))[:n_images]


def _per_channel(name: str, value: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    value = default if value is None else tuple(float(v) for v in value)
    if len(value) != len(default):
        raise ConfigurationError(
            f"{name}={list(value)} has {len(value)} values; the images have {len(default)} channels"
        )
    return value


class InMemoryDataModule(ImageDataModule):
    """Base of data modules whose images fit into memory: loading never limits training.

    Training, validation and test images are uint8 tensors, on a GPU where the Trainer runs on one (CIFAR-10 takes
    184 MB there). A batch is one slice of them; it is cropped and flipped
    (every image with its own draw) and normalised on the device. Orders and draws depend on seed and epoch alone: not
    on the device, the number of processes, or whether the run was interrupted.

    A subclass says what the images are (`load`).

    Args:
        batch_size: Training images in a batch of one process: at most so many, and all batches alike but for one image.
        eval_batch_size: The same for validation, test and prediction; None: ``batch_size``.
        val_fraction: Share of the training images held out for validation, in [0, 1), the same share of every class.
            0: validation uses the *test* images, so choose nothing by it: no epoch, no setting.
        augment: Random crop and flip of training images.
        mean: Mean of each channel of images in [0, 1]; None: the data set's own.
        std: Standard deviation of each channel; None: the data set's own.
        seed: Of the order of the images and their augmentation; None: the run's (``seed_everything``), else 0.
        split_seed: Of the choice of the validation images.

    Attributes:
        train_set: Training images (an `ImageSet`), after ``setup``; ``val_set`` and ``test_set`` likewise.
    """

    crop_padding: ClassVar[int]
    flip: ClassVar[bool]
    train_set: ImageSet
    val_set: ImageSet
    test_set: ImageSet

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        val_fraction: float,
        augment: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        seed: int | None,
        split_seed: int,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, mean, std, seed)
        if not 0.0 <= val_fraction < 1.0:
            raise ConfigurationError(f"val_fraction={val_fraction} is outside [0, 1)")
        self.val_fraction = val_fraction
        self.augment = augment
        self.split_seed = split_seed
        self._on_gpu: dict[tuple[int, torch.device], ImageSet] = {}

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the training images (validation images among them) and the test images."""

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read the images once, whatever the stage."""
        if hasattr(self, "test_set"):
            return
        train, test = self.load()
        if self.val_fraction > 0:
            kept, held_out = stratified_split(train.labels, self.val_fraction, self.split_seed)
            self.train_set, self.val_set = train.subset(kept), train.subset(held_out)
        else:
            self.train_set, self.val_set = train, test
        self.test_set = test

    @override
    def train_dataloader(self) -> TensorLoader:
        """Return shuffled batches of this process, with the draws of their augmentation."""
        # Trainer(overfit_batches=...) asks for the same batches in every epoch
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        batches = self._batches(self.train_set, self.batch_size, shuffle=not overfit)
        images = self._at_hand(self.train_set)
        return TensorLoader(images, batches, self.crop_padding, self.flip, self.augment and not overfit)

    @override
    def val_dataloader(self) -> TensorLoader:
        """Build the loader of validation images in their order."""
        return self._in_order(self.val_set)

    @override
    def test_dataloader(self) -> TensorLoader:
        """Test images in their order."""
        return self._in_order(self.test_set)

    @override
    def predict_dataloader(self) -> TensorLoader:
        """Test images in their order."""
        return self.test_dataloader()

    def _in_order(self, data: ImageSet) -> TensorLoader:
        return TensorLoader(self._at_hand(data), self._batches(data, self.eval_batch_size, shuffle=False))

    def _at_hand(self, data: ImageSet) -> ImageSet:
        """Return the images, copied once to the Trainer's GPU so that a batch is a slice; elsewhere as they are."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda":
            return data
        key = (id(data.images), device)
        if key not in self._on_gpu:
            self._on_gpu[key] = data.to(device)
        return self._on_gpu[key]

    def _batches(self, data: ImageSet, batch_size: int, shuffle: bool) -> EpochBatches:
        share = (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}
        rank, world_size = share.get("rank", 0), share.get("num_replicas", 1)
        return EpochBatches(len(data.labels), batch_size, shuffle, self.seed, rank, world_size)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crop and flip a training batch (it carries its draws), normalise any batch, on the device."""
        if isinstance(batch, Tensor):
            return batch
        images, labels, *views = batch
        if views:
            images = take_views(images, views[0], self.crop_padding)
        return self.normalize(images), labels

    @override
    def calibration_batches(
        self, n_images: int, batch_size: int | None = None, augment: bool = False, device: torch.device | str = "cpu"
    ) -> CalibrationBatches:
        """See `ImageDataModule.calibration_batches`."""
        index = self._calibration_sample(n_images, len(self.train_set.labels))
        sample = self.train_set.subset(index)
        batches = EpochBatches(n_images, batch_size or self.eval_batch_size, shuffle=False)
        generator = torch.Generator().manual_seed(self.seed)
        views = draw_views(n_images, self.crop_padding, self.flip, generator) if augment else None

        def run() -> Iterator[tuple[Tensor, Tensor]]:
            for index in batches:
                images = sample.images[index].to(device)
                if views is not None:
                    images = take_views(images, views[index].to(device), self.crop_padding)
                yield self.normalize(images), sample.labels[index].to(device)

        as_trained = partial(self.calibration_batches, n_images, batch_size, augment=True, device=device)
        return CalibrationBatches(len(batches), run, as_trained)
