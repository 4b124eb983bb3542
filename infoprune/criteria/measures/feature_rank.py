"""Ranks of many feature maps at once."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_ranks(maps: Tensor) -> Tensor:
    """Return the rank of every feature map.

    The rule is that of :func:`torch.linalg.matrix_rank`: singular values above max(H, W) x epsilon x the largest count.
    Rectified maps are often empty or nearly so; those with at most one row or column that is not zero need no
    decomposition.

    Args:
        maps: (M, H, W), any float type; decomposed in float32.

    Returns:
        (M,) int64.

    Example:
        >>> feature_ranks(torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
        tensor([1, 2, 0])
    """
    maps = maps.float()
    size = maps.abs()
    ranks = torch.minimum((size.amax(dim=2) > 0).sum(dim=1), (size.amax(dim=1) > 0).sum(dim=1))
    rest = ranks > 1
    values = torch.linalg.svdvals(maps[rest])
    threshold = max(maps.shape[1:]) * torch.finfo(values.dtype).eps * values[:, :1]
    ranks[rest] = (values > threshold).sum(dim=1)
    return ranks
