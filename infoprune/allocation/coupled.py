"""Find the channel groups that several layers add to, such as residual streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infoprune.structure.labels import distinct

if TYPE_CHECKING:
    from infoprune.structure import Structure


def coupled_groups(structure: Structure) -> frozenset[str]:
    """Return the names of the groups that several layers make and whose channels are a sum, as in a residual stream.

    Depthwise convolutions, gates of squeeze-and-excitation and grouped convolutions tie layers too, but each channel of
    their outputs comes from one layer.

    Args:
        structure: The channel groups of a model.

    Example:
        >>> import torch
        >>> import infoprune
        >>> from torchvision.models import mobilenet_v2
        >>> sorted(coupled_groups(infoprune.trace(mobilenet_v2(), torch.zeros(1, 3, 32, 32))))[:2]
        ['features.11.conv.2', 'features.14.conv.2']
    """
    axes = {
        id(axis): axis
        for record in structure.records
        if record.adds
        for output in record.outputs
        for axis in output.axes
        if axis is not None
    }
    kept = [distinct(axis) for axis in axes.values()]
    numbers = {number for axis in kept for number in structure.groups_cut(axis[axis >= 0]).tolist()}
    summed = [structure.groups[number] for number in sorted(numbers)]
    return frozenset(group.name for group in summed if len(structure.producers(group)) > 1)
