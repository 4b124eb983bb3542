"""Find the layers of a model: convolutions and linear layers whose filters make channels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infoprune.structure.labels import Labels, LabelSpace
from infoprune.structure.tracing.records import Contraction

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
    seen = set()
    for contraction in contractions:
        found = _filters_of(space, component, contraction)
        if found is not None and found[0] in space.parameters and found[0] not in seen:
            seen.add(found[0])
            yield Layer(layer_name(found[0]), *found, contraction.kind)


def _filters_of(space: LabelSpace, component: Labels, contraction: Contraction) -> tuple[str, int] | None:
    """Return the tensor, and its dimension, that a contraction turns into channels; None if there is none."""
    filters, kernel = contraction.filters, contraction.kernel
    if filters is None or not len(inside := filters[filters >= 0]):
        return None
    first = component[inside[0]]
    slot = space.slot_of(inside[0]) or space.slot_of(first)  # that of what it was united with
    if slot is not None and kernel in ("", slot.tensor):
        return slot.tensor, slot.dim
    # The kernel is computed from several tensors.
    made = [dim for dim, labels in enumerate(space.labels.get(kernel, ())) if first in component[labels]]
    likely = [dim for dim in made if slot is not None and dim == slot.dim]
    return next(((kernel, dim) for dim in [*likely, *made]), None)
