"""Label a recorded pass again, without running the model, after its constraints have changed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from infoprune.structure.labels.tensor_labels import TensorLabels, clear_labels, labels_of, set_labels
from infoprune.structure.tracing.execution import Operator
from infoprune.structure.tracing.records import OpRecord

if TYPE_CHECKING:
    from infoprune.structure.tracing.tracer import Tracer


_OTHER_VIEWS = frozenset({"aten.view_as_complex", "aten.view_as_real", "aten._conj", "aten._neg_view"})


class Step(NamedTuple):
    """One operator call of a recorded pass: what its rule receives, and all tensors among its arguments."""

    record: OpRecord
    operator: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: Sequence[Tensor]
    outs: Sequence[Tensor]


@dataclass
class Recording:
    """A pass on shapes with all its tensors, which hold no numbers.

    Attributes:
        train: whether the model ran in train mode.
        seed: of the random numbers that the pass drew.
        found: what it found in the attributes that it changed.
        labelled_tensors: the model's tensors, with the labels that they start with.
        steps: the operators.
        leaving: the tensors that leave the model, and how.
    """

    train: bool
    seed: int
    found: dict[tuple[str, str], Any] = field(default_factory=dict)
    labelled_tensors: Sequence[tuple[Tensor, TensorLabels]] = ()
    steps: list[Step] = field(default_factory=list)
    leaving: list[tuple[Tensor, str]] = field(default_factory=list)

    def held_elsewhere(self) -> list[Tensor]:
        """Return the results that other objects than this recording hold, as far as reference counts tell."""
        own = Counter(id(tensor) for step in self.steps for tensor in step.outs)
        results = {id(tensor): tensor for step in self.steps for tensor in step.outs}
        for _ in range(2):  # among the arguments, and in the list of them; a loop's variable would hold the last
            own.update(id(tensor) for step in self.steps for tensor in step.tensors)
        numbers = (step.record.read.result for step in self.steps if step.record.read is not None)
        own.update(id(number) for number in numbers)
        # In some versions of PyTorch a view holds a reference to its base, and one that is no part of what it shows, as
        # complex numbers are of pairs, to the view that it is made of.
        kinds = {id(tensor._base): 1 for tensor in results.values() if tensor._is_view()}
        operands = (step.tensors[0] for step in self.steps if step.record.name in _OTHER_VIEWS)
        kinds |= {id(tensor): 2 for tensor in operands if tensor._is_view()}
        free, based, pairs = torch.empty(1), torch.empty(1), torch.empty(2).view(1, 2)
        views = based.view(1), torch.view_as_complex(pairs)
        spare = _reference_counts({0: free, 1: based, 2: pairs})
        del views
        counts = _reference_counts(results)
        return [t for key, t in results.items() if counts[key] - spare[kinds.get(key, 0)] >= own[key]]

    def computed_from(self, inputs: Sequence[Tensor]) -> set[int]:
        """Return where the results lie that are computed from these tensors, not from the model's own alone.

        Args:
            inputs: tensors of the recorded pass.

        Returns:
            The memory of these tensors and of each such result, by `memory_of`.
        """
        found = set(map(memory_of, inputs))
        for step in self.steps:
            if any(memory_of(tensor) in found for tensor in step.tensors):
                found.update(map(memory_of, step.outs))
        return found

    def is_unchanged(self) -> bool:
        """Return whether all results are what they were in the pass, so that they can be labelled again.

        They need the same shapes, and indices and single numbers, which rules look at, the same values.
        """
        overwritten: set[int] = set()  # memory of such numbers that is written to further on in the pass
        for step in reversed(self.steps):
            if any(out.shape != output.shape for out, output in zip(step.outs, step.record.outputs, strict=True)):
                return False
            if step.record.name.endswith("_"):
                overwritten.update(memory_of(out) for out in step.outs if _is_looked_at(out))
            if overwritten and any(
                memory_of(tensor) in overwritten for tensor in step.tensors if _is_looked_at(tensor)
            ):
                return False
        return True

    def replay(self, tracer: Tracer) -> list[tuple[TensorLabels, str]]:
        """Label all results again and record that in ``tracer``.

        Args:
            tracer: takes the new records; its labels may have been united or frozen since.

        Returns:
            The labels of the tensors that leave the model, and how these leave.
        """
        tracer.found = self.found
        for step in self.steps:
            for tensor in (*step.tensors, *step.outs):
                clear_labels(tensor)
        for tensor, tensor_labels in self.labelled_tensors:
            set_labels(tensor, tensor_labels)
        try:
            for step in self.steps:
                before = step.record
                record = OpRecord(before.name, before.module, before.scalars, before.options)
                record.read, record.sizes_follow = before.read, before.sizes_follow
                tracer.label(step._replace(record=record))
            return [(labels_of(tensor), how) for tensor, how in self.leaving]
        finally:
            for tensor, _ in self.labelled_tensors:
                clear_labels(tensor)


def _reference_counts(tensors: Mapping[int, Tensor]) -> dict[int, int]:
    return {key: sys.getrefcount(tensor) for key, tensor in tensors.items()}


def _is_looked_at(tensor: Tensor) -> bool:
    return not tensor.is_meta and not (tensor.is_floating_point() and tensor.dim())


def memory_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, the same for all tensors that share it.

    Args:
        tensor: a tensor that is held meanwhile; one without strides counts as memory of its own.
    """
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
