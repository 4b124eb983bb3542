"""Gather the calibration images of a measurement in batches of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from infoprune.calibration import batch_size, holds_lists_of_images, numbers_in, rows_of, split_batch
from infoprune.errors import DataError

IMAGES, NUMBERS = 256, 10_000_000
"""So many images are enough, or fewer large ones: 64 of 3 x 224 x 224."""

BATCH, NUMBERS_AT_ONCE = 64, 2_500_000
"""Smaller batches are joined up to so many images, or fewer large ones, and larger batches are divided."""

FEWEST = 16
"""The fewest images of a batch, even if they are large: statistics of fewer images are not reliable."""

Batch = tuple[Any, Any, int]
"""Inputs, targets (None if there are none), and number of images."""


def sample(data: Iterable[Any], images: int | None, owner: str) -> Iterator[Batch]:
    """Return the first images of some data in batches of about `BATCH`, of fewer where images are large.

    Args:
        data: Batches as a loader yields them.
        images: At most so many; None: `enough` of them.
        owner: Who asks, for messages.

    Raises:
        DataError: there is no image, or a batch holds none.

    Example:
        >>> [size for _, _, size in sample([torch.zeros(40, 3), torch.zeros(300, 3)], 200, "test")]
        [120, 80]
    """
    return _joined(part for batch in _first(data, images, owner) for part in _divided(batch))


def enough(inputs: Any, size: int) -> int:
    """Return the default number of images to measure: `IMAGES`, or whole batches of about `NUMBERS` numbers.

    Args:
        inputs: Of one batch.
        size: Its number of images.

    Example:
        >>> enough(torch.zeros(8, 3, 32, 32), 8), enough(torch.zeros(8, 3, 224, 224), 8)
        (256, 64)
    """
    at_once = _at_most(BATCH, NUMBERS_AT_ONCE, inputs, size)
    return _at_most(IMAGES, NUMBERS, inputs, size) // at_once * at_once


def _at_most(images: int, numbers: int, inputs: Any, size: int) -> int:
    return min(images, max(FEWEST, numbers * size // max(numbers_in(inputs), 1)))


def _at_once(batch: Batch) -> int:
    inputs, _, size = batch
    return _at_most(BATCH, NUMBERS_AT_ONCE, inputs, size)


def _first(data: Iterable[Any], images: int | None, owner: str) -> Iterator[Batch]:
    """Return the first images of some data, in batches as they come."""
    seen = 0
    for batch in data:
        inputs, targets = split_batch(batch, owner)
        size = batch_size(inputs, owner)
        if images is None:
            images = enough(inputs, size)
        if size > images - seen:
            inputs, targets = rows_of((inputs, targets), size, slice(images - seen))
        yield inputs, targets, min(size, images - seen)
        seen += size
        if seen >= images:
            return
    if not seen:
        raise DataError(f"{owner}: the data hold no image; pass batches of training images")


def _divided(batch: Batch) -> Iterator[Batch]:
    """Return a large batch in equal parts."""
    inputs, targets, size = batch
    parts = max(1, size // _at_once(batch)) if _has_rows(batch) else 1
    for rows in torch.arange(size).chunk(parts):
        part = batch if parts == 1 else (*rows_of((inputs, targets), size, rows), len(rows))
        yield part


def _has_rows(batch: Batch) -> bool:
    """Return whether every tensor has a row for each image, which those in a list of images never have."""
    if holds_lists_of_images(batch[0]):
        return False
    return all(isinstance(leaf, Tensor) and leaf.shape[:1] == (batch[2],) for leaf in tree_leaves(batch[:2])
               if leaf is not None)  # fmt: skip


def _joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join small batches where their tensors have one row for each image."""
    waiting: list[Batch] = []
    for batch in batches:
        if waiting and not _fit(waiting[-1], batch):
            yield _join(waiting)
            waiting = []
        waiting.append(batch)
        if sum(size for _, _, size in waiting) >= _at_once(batch):
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _fit(one: Batch, other: Batch) -> bool:
    pairs = [tree_leaves(batch[:2]) for batch in (one, other)]
    if len(pairs[0]) != len(pairs[1]) or holds_lists_of_images(one[0]):
        return False
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() and b.dim() and a.shape[1:] == b.shape[1:]
        and len(a) == one[2] and len(b) == other[2]
        for a, b in zip(*pairs, strict=True) if a is not None
    )  # fmt: skip


def _join(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    joined = tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
                      *[batch[:2] for batch in batches])  # fmt: skip
    return *joined, sum(size for _, _, size in batches)
