"""Fashion-MNIST, in memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from typing_extensions import override

from infoprune.data.loader import ImageSet
from infoprune.data.module import InMemoryDataModule
from infoprune.errors import DataError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, grey, 28x28, ten classes; random crop and flip.

    The four files, plain or ``.gz``, are looked for in ``root`` and in ``root/FashionMNIST/raw``, torchvision's layout,
    and downloaded to the latter when none of them is there.

    Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747.

    Args:
        root: Folder that holds, or will hold, the files.
        batch_size: Training images in a batch of one process.
        eval_batch_size: The same for validation and test; None: ``batch_size``.
        val_fraction: Share of the training images held out for validation, the same share of every class. 0: validation
            uses the *test* images; choose nothing by it then.
        augment: Random crop (padding 2) and flip of training images.
        mean: Mean of images in [0, 1]; None: the data set's own.
        std: Standard deviation; None: the data set's own.
        seed: Of the order of the images and their augmentation; None: the run's (``seed_everything``), else 0.
        split_seed: Of the choice of the validation images.
        download: Download the files if none is there.

    Raises:
        DataError: files are missing or damaged; the message names the file and what to do.
    """

    num_classes = 10
    input_shape = (1, 28, 28)
    default_mean = (0.2860,)
    default_std = (0.3530,)
    crop_padding = 2
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

    def _find(self, name: str) -> Path | None:
        folders = (self.root, self.root / "FashionMNIST" / "raw")
        candidates = [folder / file for folder in folders for file in (name, f"{name}.gz")]
        return next((path for path in candidates if path.is_file()), None)

    @override
    def prepare_data(self) -> None:
        """Download the files if none is there, in one process."""
        if any(self._find(name) for name in FILES) or not self.download:
            return
        try:
            torchvision.datasets.FashionMNIST(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Fashion-MNIST could not be downloaded to {self.root} ({error}); "
                f"put {', '.join(FILES)} (plain or .gz) there by hand, or set root to where they lie"
            ) from error

    @override
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the four files."""
        paths = {name: self._find(name) for name in FILES}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise DataError(
                f"Fashion-MNIST in {self.root} is incomplete: {missing[0]}(.gz) is missing"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; add the file, or remove the others and set download: true"
            )
        arrays = {name: read_idx(path) for name, path in paths.items() if path is not None}
        return self._pair(arrays, "train"), self._pair(arrays, "t10k")

    def _pair(self, arrays: dict[str, np.ndarray], part: str) -> ImageSet:
        images, labels = arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"]
        if images.shape != (len(labels), 28, 28) or labels.ndim != 1 or labels.max(initial=0) >= self.num_classes:
            raise DataError(
                f"Fashion-MNIST in {self.root}: {part} images have shape {images.shape} and labels {labels.shape} with "
                f"classes up to {labels.max(initial=0)}; expected (N, 28, 28), (N,) and classes 0 to 9"
            )
        return ImageSet(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def read_idx(path: Path) -> np.ndarray:
    """Read a file of the MNIST family: uint8 values of any shape, plain or gzip.

    Args:
        path: the file.

    Raises:
        DataError: the file is truncated or of another format.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); it is truncated or damaged: replace it") from error
    # two zero bytes, 8 for uint8, the number of dimensions; then each dimension as a big-endian 32-bit number
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is no idx file of bytes; replace it")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int).tolist())
    if len(shape) != content[3] or len(content) - start != int(np.prod(shape)):
        raise DataError(f"{path} is truncated: its header says {shape}, it holds {max(0, len(content) - start)} values")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
