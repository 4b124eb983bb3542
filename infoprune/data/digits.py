"""The 8x8 handwritten digits that scikit-learn includes: no download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import override

from infoprune.data.loader import ImageSet
from infoprune.data.module import InMemoryDataModule
from infoprune.data.split import stratified_split
from infoprune.errors import ConfigurationError, DataError


class DigitsDataModule(InMemoryDataModule):
    """1,797 grey 8x8 handwritten digits in ten classes, 0 to 9, split by class into train, validation and test.

    Source: scikit-learn's ``load_digits``, the test part of the UCI set *Optical Recognition of Handwritten Digits*
    (Alpaydin and Kaynak, 1998). Its 17 grey levels are stretched to 0…255. Training images are shifted by up to one
    pixel; digits are not mirrored.

    Args:
        batch_size: Training images in a batch of one process.
        eval_batch_size: The same for validation and test; None: ``batch_size``.
        val_fraction: Share of *all* images held out for validation; 0: validation uses the test images.
        test_fraction: Share of all images held out for testing.
        augment: Shift training images.
        mean: Mean of images in [0, 1]; None: the data set's own.
        std: Standard deviation; None: the data set's own.
        seed: Of the order of the images and their shifts; None: the run's (``seed_everything``), else 0.
        split_seed: Of the split.

    Raises:
        ConfigurationError: fractions that leave nothing to train on.
        DataError: scikit-learn is not installed (when the data is set up).

    >>> data = DigitsDataModule()
    >>> data.setup()
    >>> [len(part.labels) for part in (data.train_set, data.val_set, data.test_set)]
    [1079, 359, 359]
    """

    num_classes = 10
    input_shape = (1, 8, 8)
    default_mean = (0.3053,)
    default_std = (0.3761,)
    crop_padding = 1
    flip = False

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        augment: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int | None = None,
        split_seed: int = 0,
    ) -> None:
        if not 0.0 < test_fraction < 1.0 or not 0.0 <= val_fraction < 1.0 - test_fraction:
            raise ConfigurationError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must leave images to train on: "
                "test_fraction in (0, 1), val_fraction at least 0, their sum below 1"
            )
        # the base class takes its validation share from the images that remain without the test images
        rest = val_fraction / (1.0 - test_fraction)
        super().__init__(batch_size, eval_batch_size, rest, augment, mean, std, seed, split_seed)
        self.test_fraction = test_fraction

    @override
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the digits and set the test images apart."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError(
                "DigitsDataModule takes its images from scikit-learn, which is not installed: "
                "pip install scikit-learn, or choose another data module"
            ) from error
        digits = load_digits()
        images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        everything = ImageSet(images, torch.from_numpy(digits.target).long())
        train, test = stratified_split(everything.labels, self.test_fraction, self.split_seed)
        return everything.subset(train), everything.subset(test)
