"""Hold out a part of a labelled set, class by class."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that the same share of every class is held out, up to rounding.

    Args:
        labels: ``(N,)`` int64.
        fraction: Share held out, in [0, 1].
        seed: Of the choice.

    Returns:
        Indices kept and indices held out, both sorted.

    >>> kept, held_out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(held_out), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[held_out].tolist()
    (6, 2, [0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(fraction * len(members))]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
