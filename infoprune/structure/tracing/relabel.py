"""A pass labelled anew without running the model again, where only what its operators say has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from infoprune.structure.labels.tensor_labels import TensorLabels, clear_labels, set_labels
from infoprune.structure.tracing.rule_context import OpRecord
from infoprune.structure.tracing.rules import Rule

if TYPE_CHECKING:
    from infoprune.structure.tracing.tracer import Tracer


class Step(NamedTuple):
    """One operator that ran: what its rule is told, and all tensors among its arguments."""

    record: OpRecord
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: Sequence[Tensor]
    outs: Sequence[Tensor]


@dataclass
class Recording:
    """A pass on shapes with all its tensors, which hold no numbers.

    Attributes:
        labelled_tensors: the model's tensors, with the labels that they start with.
        steps: the operators.
        outputs: what the model returned.
    """

    labelled_tensors: Sequence[tuple[Tensor, TensorLabels]] = ()
    steps: list[Step] = field(default_factory=list)
    outputs: Any = None

    def replay(self, tracer: Tracer) -> bool:
        """Label all results again and record that in ``tracer``; False if they are not what they were in the pass."""
        if not all(_as_it_was(step) for step in self.steps):
            return False
        for step in self.steps:
            for tensor in (*step.tensors, *step.outs):
                clear_labels(tensor)
        for tensor, tensor_labels in self.labelled_tensors:
            set_labels(tensor, tensor_labels)
        try:
            for step in self.steps:
                before = step.record
                tracer.label(step._replace(record=OpRecord(before.name, before.module, before.scalars)))
        finally:
            for tensor, _ in self.labelled_tensors:
                clear_labels(tensor)
        return True


def _as_it_was(step: Step) -> bool:
    """Whether the results have kept their shape, and numbers that a rule might look at their values."""
    overwritten = step.record.name.endswith("_") and not all(out.is_meta for out in step.outs)
    pairs = zip(step.outs, step.record.outputs, strict=True)
    return not overwritten and all(out.shape == output.shape for out, output in pairs)
