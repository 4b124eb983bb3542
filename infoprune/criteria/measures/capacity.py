"""Estimate information capacity: how many bits the weights of one filter can hold.

Method A's first metric is an entropy that is larger for filters worth keeping; which entropy, the sources do not say.
The estimators here are readings of it. ``histogram`` and ``gaussian`` see the scale of a filter, ``kernel_norm`` and
``kernel_knn`` do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infoprune.criteria.measures.distances import mean_of_nearest

CAPACITIES = ("histogram", "gaussian", "kernel_norm", "kernel_knn")

# Pairwise distances of kernels are formed for as many filters at a time as fit into this many numbers (128 MiB).
CHUNK = 1 << 24


def entropy_bits(weights: Tensor) -> Tensor:
    """Return the entropy in bits of each row of non-negative weights; 0 for a row that is all zero.

    Args:
        weights: (R, n) non-negative weights, which need not sum to 1.

    Returns:
        (R,) entropies.

    Example:
        >>> entropy_bits(torch.tensor([[1.0, 1.0, 1.0, 1.0], [7.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
        [2.0, 0.0, 0.0]
    """
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / torch.where(total > 0, total, torch.ones_like(total))
    return torch.special.entr(shares).sum(dim=-1) / math.log(2)


def histogram(filters: Tensor, bins: int = 32) -> Tensor:
    """Return the entropy of a filter's weights in equal bins over the range of the whole layer.

    The common range keeps scale in the picture: a filter of tiny weights falls into few bins.

    Args:
        filters: (N, C, K).
        bins: Number of bins.

    Returns:
        (N,) in [0, log2 bins]; 0 for all if the layer is constant.
    """
    rows = filters.flatten(1)
    low, high = rows.min(), rows.max()
    if low == high:
        return rows.new_zeros(len(rows))
    place = ((rows - low) * (bins / (high - low))).long().clamp_(max=bins - 1)
    place += torch.arange(len(rows))[:, None] * bins
    return entropy_bits(torch.bincount(place.flatten(), minlength=len(rows) * bins).view(-1, bins).to(rows.dtype))


def gaussian(filters: Tensor) -> Tensor:
    """Return the entropy of a normal distribution with the variance of a filter's weights, 0.5 log2(2 pi e var).

    Monotone in the standard deviation, hence close to a norm. A variance below 1e-6 of the layer's mean counts as
    that much: a dead filter is 10 bits below the average and does not stretch the scale to infinity.

    Args:
        filters: (N, C, K).

    Returns:
        (N,); 0 for all if no filter varies.
    """
    rows = filters.flatten(1)
    variance = rows.var(dim=1, correction=0)
    floor = 1e-6 * variance.mean()
    if floor <= 1e-24 * rows.square().mean():  # nothing but rounding
        return torch.zeros_like(variance)
    return 0.5 * torch.log2(2 * math.pi * math.e * variance.clamp(min=floor))


def kernel_norm(filters: Tensor) -> Tensor:
    """Return the entropy of how a filter's L2 norm is spread over its kernels.

    Args:
        filters: (N, C, K).

    Returns:
        (N,) in [0, log2 C]; 0 for a filter of zeros.
    """
    return entropy_bits(filters.norm(dim=2))


def kernel_knn(filters: Tensor, neighbours: int = 5) -> Tensor:
    """Return the entropy of how a filter's diversity is spread over its kernels.

    A kernel's diversity is its summed L2 distance to the nearest kernels of the same filter (the density of KSE, Li
    et al., CVPR 2019, taken inside a filter).

    Args:
        filters: (N, C, K).
        neighbours: Number of nearest kernels, cut to C - 1.

    Returns:
        (N,) in [0, log2 C]; 0 for a filter whose kernels are all the same.
    """
    kernels = filters.shape[1]
    step = max(1, CHUNK // kernels**2)
    # Forming the differences beats the Gram matrix here: K is small and close kernels must not cancel.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [
            entropy_bits(mean_of_nearest(torch.cdist(part, part, compute_mode=exact), neighbours))
            for part in filters.split(step)
        ]
    )


def capacity(filters: Tensor, estimator: str, bins: int = 32, neighbours: int = 5) -> Tensor:
    """Return the information capacity of each filter of a layer.

    Where an estimator has nothing to look at, ``histogram`` stands in: a depthwise filter has one kernel, so nothing
    is spread over kernels; a filter of a single weight has no variance.

    Args:
        filters: (N, C, K) float64.
        estimator: One of :data:`CAPACITIES`.
        bins: For ``histogram``.
        neighbours: For ``kernel_knn``.

    Returns:
        (N,) bits.
    """
    one_kernel, one_weight = filters.shape[1] == 1, filters[0].numel() == 1
    if estimator == "gaussian" and not one_weight:
        return gaussian(filters)
    if estimator == "kernel_norm" and not one_kernel:
        return kernel_norm(filters)
    if estimator == "kernel_knn" and not one_kernel:
        return kernel_knn(filters, neighbours)
    return histogram(filters, bins)
