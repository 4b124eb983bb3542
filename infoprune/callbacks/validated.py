"""Which of a Trainer's metrics the last validation measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from infoprune.report.record import finite

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Validated:
    """The metrics of the last validation, by name.

    A Trainer keeps the metrics of training and validation together; those that a validation measures are the ones that
    are new tensors at its end.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float | None] = {}
        self._before: dict[str, Tensor] = {}

    def start(self, trainer: pl.Trainer) -> None:
        """To be called when a validation starts."""
        self._before = dict(trainer.callback_metrics)

    def end(self, trainer: pl.Trainer) -> None:
        """To be called when it has ended."""
        measured = {k: v for k, v in trainer.callback_metrics.items() if self._before.get(k) is not v}
        self.metrics = {name: finite(float(value)) for name, value in measured.items() if value.numel() == 1}
