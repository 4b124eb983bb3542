"""Compute the distances between all filters of a layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# |a - b|^2 = |a|^2 + |b|^2 - 2ab cancels where a is close to b. In float64 what is left below this share of the norms
# is # rounding, and the distance is called zero: equal filters come out equal, and no rounding is mistaken for a
# difference.
CANCELLED = 1e-13


# Rows of the distance matrix that are formed at a time: enough for fast products, few enough to stay in the cache.
BLOCK = 256


def pairwise_l2(points: Tensor) -> Tensor:
    """Return the Euclidean distances between all rows.

    Args:
        points: (N, D) float64.

    Returns:
        (N, N) distances; the diagonal is 0, and so are distances below 4e-7 of the rows' norms.
    """
    distances = points.new_empty(len(points), len(points))
    for rows, columns, block in _upper_blocks(points):
        distances[rows, columns] = block
        distances[columns, rows] = block.T
    return distances


def sum_of_l2(points: Tensor) -> Tensor:
    """Sum the Euclidean distances of every row to all rows, without holding the (N, N) distances.

    Args:
        points: (N, D) float64.

    Returns:
        (N,).
    """
    sums = points.new_zeros(len(points))
    for rows, _, block in _upper_blocks(points):
        sums[rows] += block.sum(dim=1)
        sums[rows.stop :] += block[:, rows.stop - rows.start :].sum(dim=0)
    return sums


def _upper_blocks(points: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Return the distances of a few rows at a time to themselves and all later rows; the rest is the mirror image."""
    count = len(points)
    norms = points.square().sum(dim=1)
    for start in range(0, count, BLOCK):
        rows, columns = slice(start, min(start + BLOCK, count)), slice(start, count)
        sums = norms[rows, None] + norms[None, columns]
        squared = torch.addmm(sums, points[rows], points[columns].T, alpha=-2)
        block = squared.masked_fill_(squared <= CANCELLED * sums, 0).sqrt_()
        block.diagonal().zero_()
        yield rows, columns, block


def mean_of_nearest(distances: Tensor, count: int) -> Tensor:
    """Return the mean distance of every row to its ``count`` nearest others; 0 if there is no other.

    Args:
        distances: (..., N, N) with a zero diagonal.
        count: Number of neighbours, cut to N - 1.

    Returns:
        (..., N).
    """
    size = distances.shape[-1]
    count = min(count, size - 1)
    if count < 1:
        return distances.new_zeros(distances.shape[:-1])
    # The diagonal is one of the smallest entries of its row and adds nothing to the sum.
    return distances.topk(count + 1, dim=-1, largest=False).values.sum(dim=-1) / count


def absolute_correlation(points: Tensor) -> Tensor:
    """Return the absolute Pearson correlation between all rows.

    Args:
        points: (N, D) float64.

    Returns:
        (N, N) in [0, 1]; a constant row correlates fully with everything (it carries nothing of its own).
    """
    centred = points - points.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    constant = norms[:, 0] <= torch.finfo(points.dtype).eps * points.norm(dim=1) * points.shape[1] ** 0.5
    centred = centred / torch.where(constant[:, None], torch.ones_like(norms), norms)
    correlation = (centred @ centred.T).abs().clamp_(max=1)
    correlation[constant] = 1
    correlation[:, constant] = 1
    return correlation
