"""Cut tensors with little extra memory, in a way that can be undone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infoprune.structure.surgery.slicing import Removed, cut, cut_off, join
from infoprune.structure.tensors import on_meta

EXTRA_BYTES = 1 << 26
"""So many bytes of new tensors may be in memory beside the old ones, or as many as the largest old one has. Beyond them
an old one is given up for the part of it that goes: both parts take no more memory than the whole, and make it up."""


class InPlaceSwap:
    """Cut tensors; where memory is short, empty an old tensor, which :meth:`undo` fills again.

    Args:
        saves_memory: False: no tensor is emptied.
    """

    def __init__(self, saves_memory: bool = True) -> None:
        self._saves_memory = saves_memory
        self._room = 0
        self._given_up: list[tuple[Tensor, Tensor, Tensor, list[Tensor], Removed]] = []

    def make_room(self, tensors: Sequence[Tensor]) -> None:
        """Set how many bytes of new tensors may exist beside the old ones.

        Args:
            tensors: all tensors that are to be cut.
        """
        self._room = _room(tensors)

    def cut(self, old: Tensor, removed: Removed) -> Tensor:
        """Return the part of a tensor that stays; the tensor itself is unchanged or, where memory is short, emptied.

        While its parts are made, a tensor that is emptied takes its size once more, so cut the largest first.

        Args:
            old: the tensor.
            removed: dimension -> indices that go.

        Returns:
            A new tensor.
        """
        stays = cut(old, removed)
        size = nbytes(stays)
        if not self._saves_memory or size <= self._room or not _can_be_emptied(old):
            self._room -= size
        else:
            self._given_up.append((old, on_meta(old), stays, cut_off(old, removed), removed))
            old.data = old.new_empty(0)
        return stays

    def undo(self) -> None:
        """Restore the values of every emptied tensor."""
        with torch.inference_mode(False), torch.no_grad():
            while self._given_up:
                old, like, stays, rests, removed = self._given_up.pop()
                old.data = join(stays, rests, like, removed)


def nbytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's entries take; ``Tensor.nbytes`` refuses sparse ones.

    Args:
        tensor: dense or sparse.
    """
    return tensor.numel() * tensor.element_size()


def _room(old: Sequence[Tensor]) -> int:
    return max([EXTRA_BYTES, *map(nbytes, old)])


def _can_be_emptied(tensor: Tensor) -> bool:
    """Return whether a tensor has its memory for itself: it is not one of several views, nor expanded."""
    strided = tensor.layout is torch.strided and not tensor.is_inference()
    return strided and tensor.untyped_storage().nbytes() == nbytes(tensor)
