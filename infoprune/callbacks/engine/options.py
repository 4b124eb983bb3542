"""`EngineOptions`: what a fit removes, how it chooses, and how far it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from infoprune.allocation import Allocation
from infoprune.criteria import Criterion
from infoprune.decide import Target
from infoprune.registry import check_count


@dataclass(frozen=True)
class EngineOptions:
    """The options of `FilterPruning` that decide what is removed; see there."""

    criterion: Criterion
    target: Target
    allocation: Allocation
    frozen: tuple[str | nn.Module, ...] = ()
    example_inputs: Any = None
    module: str | None = None
    follow: Mapping[str, str] | None = None
    calibration_images: int = 640
    recalibration_batches: int = 0
    reconstruction_batches: int | Literal["auto"] = "auto"
    verify: bool = True

    def __post_init__(self) -> None:
        check_count("FilterPruning", "calibration_images", self.calibration_images, 1)
        check_count("FilterPruning", "recalibration_batches", self.recalibration_batches, 0)
        if self.reconstruction_batches != "auto":
            check_count("FilterPruning", "reconstruction_batches", self.reconstruction_batches, 0)

    @property
    def looks_at_data(self) -> bool:
        """Return whether decisions follow from training images, where there are some."""
        measured = self.allocation.needs_data and self.target.filters is None
        return self.criterion.needs_data or measured

    def described(self) -> dict[str, Any]:
        """Return criterion, allocation and all options that differ from their defaults, as plain data for logs."""
        target = {name: value for name, value in vars(self.target).items() if value is not None}
        if self.target.backend is not None:
            target["backend"] = self.target.backend.name
        return {
            "criterion": self.criterion.name or type(self.criterion).__name__,
            "criterion_options": dict(self.criterion.options),
            **target,
            "allocation": self.allocation.name or type(self.allocation).__name__,
            "allocation_options": dict(self.allocation.options),
            **({"module": self.module} if self.module else {}),
            **({"follow": dict(self.follow)} if self.follow else {}),
            **({"recalibration_batches": self.recalibration_batches} if self.recalibration_batches else {}),
            **(
                {} if self.reconstruction_batches == "auto" else {"reconstruction_batches": self.reconstruction_batches}
            ),
            **({} if self.verify else {"verify": False}),
        }
