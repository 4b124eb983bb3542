"""Choose the examples of a fit by default."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from infoprune.calibration import batch_size, numbers_in, rows_of, split_batch

EXAMPLES = 640
"""More images do not help: 640 and 1,920 gave a ResNet-56 the same accuracy."""

NUMBERS = 10_000_000
"""Limit for all inputs together, because a fit stores activations of all of them: 66 images of 3 x 224 x 224."""


def few_examples(data: Iterable[Any], caller: str) -> list[tuple[Any, None]]:
    """Return the inputs of the first batches, at most `EXAMPLES` of them with at most `NUMBERS` numbers.

    Args:
        data: batches of training images.
        caller: who asks, for messages.

    Returns:
        Batches without targets, the last one cut off where the limit is; one example at least.

    Raises:
        DataError: the inputs of a batch are no tensors.

    Example:
        >>> import torch
        >>> [len(inputs) for inputs, _ in few_examples([torch.zeros(400, 3, 8, 8)] * 3, "doctest")]
        [400, 240]
        >>> [len(inputs) for inputs, _ in few_examples([torch.zeros(40, 3, 512, 512)], "doctest")]
        [13]
    """
    chosen: list[tuple[Any, None]] = []
    examples, numbers = EXAMPLES, NUMBERS
    for batch in data:
        inputs, _ = split_batch(batch, caller)
        size = batch_size(inputs, caller)
        held = numbers_in(inputs)
        count = min(size, examples, math.ceil(numbers * size / max(held, 1)))
        chosen.append((rows_of(inputs, size, slice(count)), None))
        examples, numbers = examples - count, numbers - held * count // max(size, 1)
        if count < size or examples <= 0 or numbers <= 0:
            break
    return chosen
