"""What a pass records of the operators that it runs, and of their multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from infoprune.structure.labels import Labels
from infoprune.structure.labels.tensor_labels import Axis
from infoprune.structure.tracing.options import Options


@dataclass(slots=True)
class Output:
    """The shape and layout of one result, by which a dry run tells whether a shrunk model repeats it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[Axis, ...]


class Read(NamedTuple):
    """Mark an operator on shapes whose numbers were computed, with its result if that is a number."""

    result: Any


@dataclass(slots=True)
class OpRecord:
    """One operator of the traced forward pass."""

    name: str
    module: str
    scalars: tuple[float, ...] = ()
    options: Options | None = None
    outputs: list[Output] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)  # question -> decision, for dry runs
    splits: list[tuple[int, ...]] = field(default_factory=list)  # how many parts of how many parts of ... of an axis
    counted: list[Labels] = field(default_factory=list)  # what is as many as a number among the arguments says
    read: Read | None = None
    ways: int = 1  # in how many ways it lets channels go: equal positions of all parts of a dimension, or whole parts
    sizes_follow: bool = False  # PyTorch computes the sizes that it is given from the operands, as in ``flatten``
    adds: bool = False  # sums activations that have channels, as at the end of a residual branch
    by_place: bool = False  # takes some channels of a dimension by their places, so that a cut elsewhere tells nothing

    @property
    def axes(self) -> list[Labels]:
        """The labelled dimensions of its results, in order."""
        return [axis for output in self.outputs for axis in output.axes if axis is not None]

    def __str__(self) -> str:
        name = self.name.removeprefix("aten.").rstrip("_")
        return f"{name} in {self.module}" if self.module else f"{name} in the model's forward"


class Contraction(NamedTuple):
    """Multiply-accumulates of one call: ``times`` the product of its prunable dimensions.

    Attributes:
        kernel: the parameter or buffer that a factor is, or is computed from; empty where activations are multiplied.
        module: where it runs.
        kind: ``"conv"``, ``"linear"`` or ``"attention"``.
        times: the product of the dimensions without labels.
        filters: the labels of the channels that it makes, if any.
        sides: the labelled dimensions: those of the kernel, and of whatever else it is repeated along.
    """

    kernel: str
    module: str
    kind: str
    times: float
    filters: Axis
    sides: tuple[Labels, ...]
