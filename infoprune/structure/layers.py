"""Find the layers of a model: convolutions and linear layers whose filters make channels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infoprune.structure.labels import Labels, LabelSpace, Slot
from infoprune.structure.tracing.rule_context import Contraction

_WEIGHT = re.compile(r"\.(weight|weight_orig|weight_v|parametrizations\.weight\.original[01]?)$")
"""How PyTorch calls the weight of a layer; the last three where masks, norms or parametrizations compute it."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with the parameter whose filters make its output channels.

    Attributes:
        name: module path, or the parameter's name if it is not a module's ``weight``.
        weight: name of the weight, or of the parameter that the kernel is computed from.
        dim: the weight's filter dimension.
        kind: ``"conv"`` or ``"linear"``.
    """

    name: str
    weight: str
    dim: int
    kind: str


def layer_name(tensor: str) -> str:
    """Return the module path of a ``weight``, or the tensor's own name.

    Args:
        tensor: name of a parameter or buffer.

    Example:
        >>> layer_name("layer1.0.conv1.weight"), layer_name("attn.in_proj_weight"), layer_name("weight")
        ('layer1.0.conv1', 'attn.in_proj_weight', 'weight')
        >>> layer_name("conv.weight_orig"), layer_name("conv.parametrizations.weight.original1")
        ('conv', 'conv')
    """
    return _WEIGHT.sub("", tensor)


def layer_of(contraction: Contraction) -> str:
    """Return the name under which a contraction's cost is reported.

    Args:
        contraction: a convolution, linear layer or product of activations that ran.

    Returns:
        The layer of its weight; without one the module that ran it.
    """
    return layer_name(contraction.kernel) if contraction.kernel else contraction.module or "forward"


def find_layers(space: LabelSpace, component: Labels, contractions: Sequence[Contraction]) -> Iterator[Layer]:
    """Yield the layers of a model in forward order, each once.

    Args:
        space: the labels of the model.
        component: (labels,) for each label the smallest of its component.
        contractions: the convolutions and products that ran, in forward order.
    """
    finder = _FilterFinder(space, component)
    seen = set()
    for contraction in contractions:
        slot = finder.slot_of(contraction)
        if slot is not None and slot.tensor not in seen:
            seen.add(slot.tensor)
            yield Layer(layer_name(slot.tensor), slot.tensor, slot.dim, contraction.kind)


class _FilterFinder:
    """Find the dimension of a layer's weight that a contraction turns into channels."""

    def __init__(self, space: LabelSpace, component: Labels) -> None:
        self._space = space
        self._component = component
        self._starts = np.array([slot.start for slot in space.slots])
        self._by_tensor: dict[str, list[Slot]] = {}
        for slot in space.slots:
            self._by_tensor.setdefault(slot.tensor, []).append(slot)

    def slot_of(self, contraction: Contraction) -> Slot | None:
        filters, kernel = contraction.filters, contraction.kernel
        if filters is None or not len(inside := filters[filters >= 0]):
            return None
        slot = self._slot_at(inside[0])
        if kernel and (slot is None or slot.tensor != kernel):  # the kernel is computed from several tensors
            made = [s for s in self._by_tensor[kernel] if self._component[inside[0]] in self._component[s.labels]]
            slot = next((s for s in made if slot is not None and s.dim == slot.dim), made[0] if made else None)
        return slot if slot is not None and slot.tensor in self._space.parameters else None

    def _slot_at(self, label: int) -> Slot | None:
        if label >= self._space.slots_end():
            label = self._component[label]  # what it was united with, if that has a slot
        if label >= self._space.slots_end():
            return None
        return self._space.slots[int(np.searchsorted(self._starts, label, side="right")) - 1]
