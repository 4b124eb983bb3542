"""Freeze the channels of tensors that leave the model: outputs, and tensors that code or hooks keep."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from infoprune.inputs import Inputs
from infoprune.structure.labels import LabelSpace, distinct
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of
from infoprune.structure.tracing.outputs import Returned, tensors_held
from infoprune.structure.tracing.relabel import memory_of
from infoprune.structure.tracing.tables import kept_elsewhere
from infoprune.structure.tracing.tracer import Tracer

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession

REACHES_OUTPUT = "reaches the model's output"


def note_leaving(
    session: TraceSession, tracer: Tracer, returned: Returned, own: Sequence[Tensor], inputs: Inputs
) -> None:
    """Freeze the channels of tensors that leave the model.

    Args:
        session: the model.
        tracer: the pass that has just ended.
        returned: what the forward returned.
        own: the model's own tensors in that pass.
        inputs: the inputs of that pass.
    """
    leaving = [
        (tensor, labels, REACHES_OUTPUT) for tensor, labels in zip(returned.tensors, returned.labels, strict=True)
    ]
    known = {id(tensor) for tensor in (*own, *returned.tensors, *tensors_held(returned.value))}
    kept, others = _kept(tracer, known, tensors_held(inputs), session.modules.values())
    if others and not tracer.first:  # the first pass, which may have made them
        tracer.tables = kept_elsewhere(others, session.modules.values())
    places = [f"is kept after the forward pass, {_place_of(tensor, session.modules)}" for tensor in kept]
    leaving += [(tensor, labels_of(tensor), place) for tensor, place in zip(kept, places, strict=True)]
    if tracer.recording is not None:
        tracer.recording.leaving = [(tensor, how) for tensor, _, how in leaving]
    freeze_leaving(session.space, ((labels, how) for _, labels, how in leaving))


def freeze_leaving(space: LabelSpace, leaving: Iterable[tuple[TensorLabels, str]]) -> None:
    """Freeze the labels of tensors that leave the model; the reason says how each leaves.

    Args:
        space: where the labels are frozen.
        leaving: labels of each tensor, and the reason in words.
    """
    for labels, how in leaving:
        for axis in labels.axes:
            if axis is not None:
                axis = distinct(axis)
                space.freeze(axis[axis >= 0], how)
        for statistic in labels.statistics:
            space.freeze(statistic.axis[statistic.axis >= 0], statistic.reason, statistic.op)


def _kept(
    tracer: Tracer, known: set[int], inputs: Sequence[Tensor], modules: Collection[nn.Module]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of a finished pass that are still referenced, besides the known ones: with labels, without.

    What is computed from the model's own tensors alone is a cache, which a cut drops.
    """

    def find() -> list[Tensor]:
        alive = tracer.recording.held_elsewhere() if tracer.recording else _alive(tracer.results)
        return [tensor for tensor in alive if id(tensor) not in known and labels_of(tensor).origin is None]

    found = find()
    if found and kept_elsewhere(found, modules):
        del found  # which would keep alive what is to be freed
        gc.collect()  # free tensors that only cycles of objects hold; it can take as long as a pass
        found = find()
    kept = [tensor for tensor in found if labels_of(tensor).tells]
    others = [tensor for tensor in found if not labels_of(tensor).labelled]
    if tracer.recording:
        computed = tracer.recording.computed_from(inputs)
        kept = [tensor for tensor in kept if memory_of(tensor) in computed]
        others = [tensor for tensor in others if memory_of(tensor) not in computed]
    return kept, others


def _alive(results: Iterable[weakref.ref[Tensor]]) -> list[Tensor]:
    found = (result() for result in results)
    return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def _place_of(tensor: Tensor, modules: Mapping[str, nn.Module]) -> str:
    """Return where a tensor is kept, in words."""
    for prefix, module in modules.items():
        for name, value in {**module._parameters, **module._buffers, **module.__dict__}.items():
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if any(held is tensor for held in (value, *inside)):
                return f"in {f'{prefix}.{name}' if prefix else name}"
    return "by a hook or other code around the model"
