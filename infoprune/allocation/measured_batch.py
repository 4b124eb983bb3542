"""Hold a batch of images with the outputs of the whole model, which cuts are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from infoprune.allocation.divergence import Distance, uninformed


class MeasuredBatch:
    """A batch, the whole model's outputs on it, and how to compare outputs with these.

    Args:
        inputs: What the model is called with.
        size: Number of images.
        outputs: The whole model's outputs.
        distances: For each output, how to compare it.
        order: Id of a weight -> position of its first use.
    """

    def __init__(
        self, inputs: Any, size: int, outputs: list[Tensor], distances: list[Distance], order: Mapping[int, int]
    ) -> None:
        self.inputs, self.size, self.outputs, self.distances = inputs, size, outputs, distances
        self.resumes = True
        self._order = order

    @property
    def information(self) -> float:
        """The loss of outputs without information about the images, summed over the outputs."""
        pairs = zip(self.distances, self.outputs, strict=True)
        return sum(distance(output, uninformed(distance, output)).double().mean().item() for distance, output in pairs)

    def place(self, weights: Iterable[Tensor]) -> int:
        """Return the position of the first use of some weights; beyond the last call if there is none.

        Args:
            weights: The weights.
        """
        return min((self._order.get(id(p), len(self._order)) for p in weights), default=len(self._order))
