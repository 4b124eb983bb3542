"""Spearman's rank correlation."""

from __future__ import annotations

from torch import Tensor


def ranks_with_ties(values: Tensor) -> Tensor:
    """Return the rank of each value from 0; equal values share the mean of their ranks.

    Args:
        values: (n,) values.

    Returns:
        (n,) ranks.

    Example:
        >>> import torch
        >>> ranks_with_ties(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist()
        [2.5, 0.0, 2.5, 1.0]
    """
    _, group, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts.double() - 1) / 2)[group]


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors; 0 if one of them is constant.

    Args:
        a: (n,) values.
        b: (n,) values.

    Example:
        >>> import torch
        >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0])), 9)
        1.0
    """
    x, y = (ranks_with_ties(v) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0
