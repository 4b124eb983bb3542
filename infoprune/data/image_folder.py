"""Images in folders named after their classes: ImageNet's layout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2
from typing_extensions import override

from infoprune.data.calibration import CalibrationBatches
from infoprune.data.module import ImageDataModule
from infoprune.errors import DataError


class ImageFolderDataModule(ImageDataModule):
    """``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``, read by worker processes.

    Training: random resized crop and flip. Validation, test and prediction, all on ``val/``: resize the shorter side,
    crop the centre. Images travel as uint8 and are normalised on the device. The defaults are those that torchvision's
    ImageNet weights were evaluated with.

    With several processes the Trainer shares the images out, and repeats a few so that all get the same number: a
    validation accuracy may then differ in the last digit from that of one process.

    Args:
        root: Folder with ``train`` and ``val``.
        batch_size: Training images in a batch of one process.
        eval_batch_size: The same for validation and test; None: ``batch_size``.
        image_size: Side of the images that the network sees, pixels.
        resize_size: Shorter side before the centre crop, pixels.
        augment: Random crop and flip of training images, else as in validation.
        num_workers: Reading processes; None: one a CPU core, at most 8.
        mean: Mean of each channel of images in [0, 1]; None: ImageNet's.
        std: Standard deviation of each channel; None: ImageNet's.
        seed: Of the calibration sample; None: the run's (``seed_everything``), else 0. The order of the training images
            and their augmentation always follow ``seed_everything``.

    Raises:
        DataError: a folder is missing or empty, or ``val`` has a class that ``train`` does not know.
    """

    default_mean = (0.485, 0.456, 0.406)
    default_std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        image_size: int = 224,
        resize_size: int = 256,
        augment: bool = True,
        num_workers: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, mean, std, seed)
        self.root = Path(root)
        self.augment = augment
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.input_shape = (3, image_size, image_size)
        self.train_transform = v2.Compose(
            [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )
        self.eval_transform = v2.Compose(
            [v2.Resize(resize_size, antialias=True), v2.CenterCrop(image_size), v2.PILToTensor()]
        )

    @override
    def setup(self, stage: str | None = None) -> None:
        """List the images; the workers read them."""
        if hasattr(self, "val_set"):
            return
        transform = self.train_transform if self.augment else self.eval_transform
        train, val = self._folder("train", transform), self._folder("val", self.eval_transform)
        for name in val.classes:
            if name not in train.classes:
                raise DataError(f"{self.root / 'val'} has class {name!r}, which {self.root / 'train'} does not have")
        # numbered by the training classes, also where a class has no validation image
        val.samples = [(path, train.class_to_idx[val.classes[label]]) for path, label in val.samples]
        self.num_classes = len(train.classes)
        self.train_set, self.val_set = train, val

    def _folder(self, part: str, transform: v2.Transform) -> torchvision.datasets.ImageFolder:
        folder = self.root / part
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; root must hold train/<class>/*.jpg and val/<class>/*.jpg")
        try:
            return torchvision.datasets.ImageFolder(str(folder), transform)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} has no folder of images for each class ({error}); sort the images into {folder}/<class>/"
            ) from error

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return shuffled training images."""
        # a last batch of one image would be too small for batch norm
        drop_last = len(self.train_set) >= self.batch_size
        return self._loader(self.train_set, self.batch_size, shuffle=True, drop_last=drop_last)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the images of ``val``, in their order."""
        return self._loader(self.val_set, self.eval_batch_size)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the images of ``val``, in their order."""
        return self.val_dataloader()

    @override
    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the images of ``val``, in their order."""
        return self.val_dataloader()

    def _loader(
        self,
        dataset: Dataset[tuple[Tensor, Tensor]],
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            dataset,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    @override
    def calibration_batches(
        self, n_images: int, batch_size: int | None = None, augment: bool = False, device: torch.device | str = "cpu"
    ) -> CalibrationBatches:
        """See `ImageDataModule.calibration_batches`; the images are read anew in every pass."""
        index = self._calibration_sample(n_images, len(self.train_set)).tolist()
        transform = self.train_transform if augment else self.eval_transform
        sample = Subset(self._folder("train", transform), index)
        size = batch_size or self.eval_batch_size

        def run() -> Iterator[tuple[Tensor, Tensor]]:
            # in workers, seeded through the loader's generator: the global random state is neither used nor moved
            generator = torch.Generator().manual_seed(self.seed)
            for images, labels in DataLoader(sample, size, num_workers=max(1, self.num_workers), generator=generator):
                yield self.normalize(images.to(device)), labels.to(device)

        as_trained = partial(self.calibration_batches, n_images, batch_size, augment=True, device=device)
        return CalibrationBatches(-(-n_images // size), run, as_trained)
