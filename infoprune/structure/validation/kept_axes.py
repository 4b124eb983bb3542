"""Remove a plan's labels from the axes of the original's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.labels import Labels, distinct
from infoprune.structure.labels.tensor_labels import Axis
from infoprune.structure.tracing.rule_context import Output


class KeptAxes:
    """The axes of the original without the labels that a plan removes.

    Args:
        keep: (labels,) bool: which labels stay.
        kept: what is left of axes that are known before, by their identity.
    """

    def __init__(self, keep: np.ndarray, kept: Mapping[int, Labels]) -> None:
        self._keep = keep
        self._kept = dict(kept)

    def of(self, axis: Labels) -> Labels:
        """Return an axis without its removed labels, as one shared array for each axis.

        Args:
            axis: (n,) labels.

        Returns:
            (m,) labels that stay.
        """
        kept = self._kept.get(id(axis))
        if kept is None:
            whole = self._keep[distinct(axis)].all()
            kept = self._kept[id(axis)] = axis if whole else axis[self._keep[axis]]
        return kept

    def of_output(self, output: Output) -> list[Axis]:
        """Return every axis of a result without its removed labels; None for axes without labels.

        Args:
            output: a result of an operator of the traced pass.
        """
        return [None if axis is None else self.of(axis) for axis in output.axes]

    def part_of(self, numbers: Tensor, axes: Sequence[Axis]) -> Tensor:
        """Return the numbers of a result of the traced pass without those of removed channels.

        Args:
            numbers: the result.
            axes: its labels.
        """
        for dim, axis in enumerate(axes):
            if axis is not None and not self._keep[axis].all():
                numbers = numbers.index_select(dim, torch.as_tensor(np.flatnonzero(self._keep[axis])))
        return numbers
