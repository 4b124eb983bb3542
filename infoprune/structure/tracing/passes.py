"""The forward passes of a model that a trace has recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from infoprune.structure.tracing.records import Contraction, OpRecord
from infoprune.structure.tracing.relabel import Recording
from infoprune.structure.tracing.tracer import Tracer


@dataclass
class Passes:
    """The recorded forward passes of a model, which a dry run repeats.

    Attributes:
        on_shapes: whether they ran on meta tensors rather than on numbers.
        traced: whether each ran in train mode, and its tracer.
        zeros: the pass on weights of zero, where passes run on numbers.
        tables_on: where tables have numbers that the code keeps outside of its modules; None if it keeps none.
    """

    on_shapes: bool
    traced: list[tuple[bool, Tracer]] = field(default_factory=list)
    zeros: Tracer | None = None
    tables_on: torch.device | None = None

    @property
    def to_repeat(self) -> list[tuple[bool, Tracer]]:
        """Return the passes that a dry run repeats."""
        return self.traced if self.zeros is None else [(False, self.zeros)]

    @property
    def tracers(self) -> list[Tracer]:
        """Return the tracers of all passes, in the order of their operators' numbers."""
        return [*(tracer for _, tracer in self.traced), *([self.zeros] if self.zeros else [])]

    @property
    def counted(self) -> list[Contraction]:
        """Return the products whose cost is counted: those of the first pass, which ran in eval mode."""
        return self.traced[0][1].contractions

    @property
    def records(self) -> list[OpRecord]:
        """Return the operators of all passes, in the order of their numbers."""
        return [record for tracer in self.tracers for record in tracer.records]


class SessionState(NamedTuple):
    """What a session knows of a model at some time.

    Attributes:
        passes: the recorded passes.
        recordings: these with all their tensors.
        unreached: the modules that no pass ran.
        space: what is noted in the label space.
    """

    passes: Passes
    recordings: list[Recording]
    unreached: list[str]
    space: dict[str, Any]
