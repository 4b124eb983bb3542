"""CIFAR-10 and CIFAR-100, in memory."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from lightning.pytorch.utilities import rank_zero_warn
from torchvision.datasets.utils import check_integrity
from typing_extensions import override

from infoprune.data.loader import ImageSet
from infoprune.data.module import InMemoryDataModule
from infoprune.errors import DataError


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32, ten classes; random crop (padding 4) and flip.

    The images come from ``root/cifar-10-batches-py``, torchvision's layout, and are downloaded there when that folder
    does not exist. A complete folder whose files differ from the official ones (re-packed, say) is accepted with a
    warning. The files are pickles, read by torchvision's own reader: take them only from a source you trust.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Args:
        root: Folder that holds, or will hold, ``cifar-10-batches-py``.
        batch_size: Training images in a batch of one process.
        eval_batch_size: The same for validation and test; None: ``batch_size``.
        val_fraction: Share of the training images held out for validation (0.1: 5,000), the same share of every class.
            0: validation uses the *test* images; choose nothing by it then: no epoch, no setting.
        augment: Random crop and flip of training images.
        mean: Mean of each channel of images in [0, 1]; None: CIFAR's. Weights trained with other numbers want those.
        std: Standard deviation of each channel; None: CIFAR's.
        seed: Of the order of the images and their augmentation; None: the run's (``seed_everything``), else 0.
        split_seed: Of the choice of the validation images.
        download: Download the archive if the folder does not exist.

    Raises:
        DataError: the folder is missing, incomplete or damaged; the message names the file and what to do.
    """

    dataset: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10
    num_classes = 10
    input_shape = (3, 32, 32)
    default_mean = (0.4914, 0.4822, 0.4465)
    default_std = (0.2470, 0.2435, 0.2616)
    crop_padding = 4
    flip = True

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        eval_batch_size: int | None = 1000,
        val_fraction: float = 0.1,
        augment: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int | None = None,
        split_seed: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_fraction, augment, mean, std, seed, split_seed)
        self.root = Path(root)
        self.download = download

    @property
    def folder(self) -> Path:
        """Return where the files lie."""
        return self.root / self.dataset.base_folder

    @property
    def _files(self) -> dict[str, str]:
        """Official md5 sums by file name."""
        official = [*self.dataset.train_list, *self.dataset.test_list]
        return {**dict(official), self.dataset.meta["filename"]: self.dataset.meta["md5"]}

    @override
    def prepare_data(self) -> None:
        """Download the archive if there is no folder, in one process."""
        if self.folder.exists() or not self.download:
            return
        try:
            self.dataset(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.dataset.__name__} could not be downloaded to {self.root} ({error}); "
                f"put the complete folder {self.dataset.base_folder} there by hand, or set root to where it lies"
            ) from error

    @override
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Check that the files exist and whether they are the official ones, then read them."""
        self._require_all_files()
        foreign = [name for name, md5 in self._files.items() if not check_integrity(str(self.folder / name), md5)]
        train, test = self._read(train=True), self._read(train=False)
        if foreign:
            rank_zero_warn(
                f"{self.folder}: {foreign[0]}"
                + (f" and {len(foreign) - 1} more files differ" if len(foreign) > 1 else " differs")
                + f" from the official {self.dataset.__name__} (md5). The folder is complete and used as it is, with "
                f"{len(train.labels):,} training and {len(test.labels):,} test images (official: 50,000 and 10,000)"
            )
        return train, test

    def _require_all_files(self) -> None:
        missing = [name for name in self._files if not (self.folder / name).is_file()]
        if missing and not self.folder.exists():
            raise DataError(
                f"{self.folder} does not exist; set download: true, or set root to the folder that holds "
                f"{self.dataset.base_folder}"
            )
        if missing:
            raise DataError(
                f"{self.folder} is incomplete: {missing[0]} is missing"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; add the file, or remove the folder and set download: true"
            )

    def _read(self, train: bool) -> ImageSet:
        """Read one part through torchvision, but accept files with other checksums."""
        official = self.dataset

        class AnyChecksum(official):  # type: ignore[misc, valid-type]
            train_list: ClassVar[list[list[Any]]] = [[name, None] for name, _ in official.train_list]
            test_list: ClassVar[list[list[Any]]] = [[name, None] for name, _ in official.test_list]
            meta: ClassVar[dict[str, Any]] = {**official.meta, "md5": None}

        part = "training" if train else "test"
        try:
            dataset = AnyChecksum(str(self.root), train=train)
            images, labels = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
            raise DataError(
                f"{self.folder}: the {part} files cannot be read ({type(error).__name__}: {error}); "
                "one is truncated or damaged: replace it, or remove the folder and set download: true"
            ) from error
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{self.folder}: the {part} files hold {len(images)} images and {len(labels)} labels of shape "
                f"{images.shape[1:]}, {images.dtype}; expected as many labels as images of shape (32, 32, 3), uint8"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(
                f"{self.folder}: the {part} files hold label {labels.max() if labels.min() >= 0 else labels.min()}; "
                f"{self.dataset.__name__} has classes 0 to {self.num_classes - 1}"
            )
        return ImageSet(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: as `CIFAR10DataModule`, with a hundred classes and ``root/cifar-100-python``."""

    dataset = torchvision.datasets.CIFAR100
    num_classes = 100
    default_mean = (0.5071, 0.4865, 0.4409)
    default_std = (0.2673, 0.2564, 0.2762)
