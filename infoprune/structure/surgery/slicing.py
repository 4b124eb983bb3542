"""Split a tensor into the part that stays and the parts that go, and join them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

SLICE = 1 << 19
"""So many entries of a tensor that loses along several dimensions are looked at at once."""

SMALL = 1 << 16
"""Tensors of fewer entries are cut by ``index_select``, which takes fewer steps than NumPy's ``take``."""

Removed: TypeAlias = Mapping[int, tuple[int, ...]]
"""Dimension -> the indices that go, as in a plan."""


class Wanted(NamedTuple):
    """Ascending indices of a dimension, also as aligned blocks of neighbours, which are copied at once.

    After a flattened convolution, for example, a block holds the entries of one of its channels.
    """

    indices: np.ndarray
    blocks: np.ndarray
    size: int


Selection: TypeAlias = Mapping[int, Wanted]
"""Dimensions, ascending, and what is wanted of them; of all others everything is."""

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cut(tensor: Tensor, removed: Removed) -> Tensor:
    """Return the part of a tensor that stays, as a new tensor in the same memory format.

    Args:
        tensor: any tensor.
        removed: dimension -> indices that go.
    """
    return _select(tensor.detach(), _stays(tensor.shape, removed))


def cut_off(tensor: Tensor, removed: Removed) -> list[Tensor]:
    """Return the parts of a tensor that go, as new tensors; :func:`join` puts them back.

    Args:
        tensor: any tensor.
        removed: dimension -> indices that go.

    Returns:
        One tensor for each dimension that loses anything, in order.
    """
    return [_select(tensor.detach(), selection) for selection in _parts(tensor.shape, removed)[1:]]


def join(stays: Tensor, rests: Sequence[Tensor], like: Tensor, removed: Removed) -> Tensor:
    """Join the parts of :func:`cut` and :func:`cut_off` into the tensor before, bit for bit.

    Args:
        stays: from :func:`cut`.
        rests: from :func:`cut_off`.
        like: its shape and strides, on any device.
        removed: what they went by.
    """
    whole = torch.empty_strided(like.shape, like.stride(), dtype=stays.dtype, device=stays.device)
    for part, selection in zip([stays, *rests], _parts(like.shape, removed), strict=True):
        axes = [selection[dim].indices if dim in selection else np.arange(size) for dim, size in enumerate(like.shape)]
        whole[tuple(torch.from_numpy(index).to(whole.device) for index in np.ix_(*axes))] = part.detach()
    return whole


def forget() -> None:
    """Clear the cache of indices that tensors share."""
    _known.clear()


def _stays(shape: Sequence[int], removed: Removed) -> Selection:
    """Return the part that stays."""
    return {dim: _both(gone, shape[dim])[0] for dim, gone in sorted(removed.items()) if gone}


def _parts(shape: Sequence[int], removed: Removed) -> list[Selection]:
    """Return the part that stays; then, for each dimension, the part that it loses of what earlier dimensions leave."""
    stays = _stays(shape, removed)
    before = {dim: {other: wanted for other, wanted in stays.items() if other < dim} for dim in stays}
    return [stays, *({**before[dim], dim: _both(removed[dim], shape[dim])[1]} for dim in stays)]


_known: dict[tuple[int, int], tuple[tuple[int, ...], Wanted, Wanted]] = {}
"""What `_both` has computed, by the identity of the indices, which are held here, and the size of the dimension."""

_MOST_KNOWN = 256


def _both(gone: tuple[int, ...], size: int) -> tuple[Wanted, Wanted]:
    """Return the indices of a dimension that stay, and those that go.

    A layer, its norm and its optimizer state all lose one tuple of indices, which takes long to hash.
    """
    key = id(gone), size
    found = _known.get(key)
    if found is None:
        stays = np.ones(size, dtype=bool)
        stays[np.asarray(gone)] = False
        block = int(np.gcd.reduce(np.flatnonzero(stays[1:] != stays[:-1]) + 1, initial=size))
        stay, go = np.flatnonzero(stays), np.flatnonzero(~stays)
        found = gone, Wanted(stay, stay[::block] // block, block), Wanted(go, go[::block] // block, block)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found[1:]


def _select(tensor: Tensor, wanted: Selection) -> Tensor:
    """Return the wanted part, as a new tensor in the same memory format."""
    # What takes a single byte may be a float8, which not every version of PyTorch indexes.
    small = tensor.numel() < SMALL and tensor.element_size() > 1
    if wanted and not small and _numpy_can(tensor):
        return _taken(tensor, wanted)
    layout, result = _memory_format(tensor), tensor
    for dim, (indices, _, _) in wanted.items():
        result = result.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return result if layout is None else result.contiguous(memory_format=layout)


def _numpy_can(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous()
    return plain and not tensor.is_quantized and not tensor.is_conj() and tensor.element_size() in _SAME_SIZE


def _taken(tensor: Tensor, wanted: Selection) -> Tensor:
    """Take the wanted part of a contiguous CPU tensor, where NumPy's ``take`` is faster than ``index_select``."""
    sizes = {dim: len(wanted[dim].indices) if dim in wanted else size for dim, size in enumerate(tensor.shape)}
    result = tensor.new_empty(tuple(sizes.values()))
    bits = _SAME_SIZE[tensor.element_size()]
    source, target, steps = tensor.view(bits).numpy(), result.view(bits).numpy(), []
    for number, (dim, (_, blocks, size)) in enumerate(wanted.items()):  # each earlier one is split in two by now
        dim += number
        source = source.reshape(*source.shape[:dim], -1, size, *source.shape[dim + 1 :])
        target = target.reshape(*target.shape[:dim], -1, size, *target.shape[dim + 1 :])
        steps.append((dim, blocks))
    _take(source, steps, target)
    return result


def _take(source: np.ndarray, steps: Sequence[tuple[int, np.ndarray]], target: np.ndarray) -> None:
    """Take indices of several dimensions one after the other; in slices, so that what is in between stays small."""
    (dim, indices), *others = steps
    if not others:
        # All indices are inside; "wrap" checks that fastest.
        source.take(indices, dim, out=target, mode="wrap")
        return
    count = max(SLICE * source.shape[dim] // max(source.size, 1), 1)
    between = source[:0]
    for start in range(0, len(indices), count):
        chosen = indices[start : start + count]
        if between.shape[dim] != len(chosen):
            between = np.empty((*source.shape[:dim], len(chosen), *source.shape[dim + 1 :]), source.dtype)
        source.take(chosen, dim, out=between, mode="wrap")
        _take(between, others, target[(slice(None),) * dim + (slice(start, start + count),)])


def _memory_format(tensor: Tensor) -> torch.memory_format | None:
    for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return None
