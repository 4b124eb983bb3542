"""A fixed sample of training images for criteria that look at data and for recalibrating batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


class CalibrationBatches:
    """Batches ``(images, labels)`` that can be iterated over any number of times, with the same content each time.

    Images are float32, normalised, ``(N, C, H, W)``; labels int64 ``(N,)``; both on the CPU unless the data module was
    told otherwise.

    Args:
        count: Number of batches.
        make: Starts a pass.
        make_as_trained: Returns the same images as in training.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        make_as_trained: Callable[[], CalibrationBatches],
    ) -> None:
        self._count = count
        self._make = make
        self._make_as_trained = make_as_trained

    @property
    def as_trained(self) -> CalibrationBatches:
        """The same images as they are shown in training (cropped and flipped, say)."""
        return self._make_as_trained()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._make()
