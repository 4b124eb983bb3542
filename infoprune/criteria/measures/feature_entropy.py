"""Compute entropies of activations, each scaled so that its largest possible value is 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def histogram_entropy(values: Tensor, bins: int, correct: bool = False) -> Tensor:
    """Return the entropy of each column in equal bins over its own range, over log(bins).

    Source: Luo & Wu, "An Entropy-based Pruning Method for CNN Compression", arXiv 1706.05791, with one pooled value
    for each image and channel.

    Args:
        values: (B, C).
        bins: Number of bins.
        correct: Add the Miller-Madow correction (occupied bins - 1) / (2 B), which few samples need; cut off at 1.

    Returns:
        (C,) in [0, 1]; 0 for a constant column.
    """
    counts = histograms(values.T, bins)
    return entropy_of_counts(counts, correct) / math.log(bins)


def histograms(rows: Tensor, bins: int, limits: Sequence[Tensor] | None = None) -> Tensor:
    """Count each row's values in equal bins; a constant row fills one bin.

    Args:
        rows: (R, N).
        bins: Number of bins.
        limits: Lowest and highest value of the bins, (R, 1) each; the row's own range by default.

    Returns:
        (R, bins).
    """
    low, high = rows.aminmax(dim=1, keepdim=True) if limits is None else limits
    width = torch.where(high > low, high - low, torch.ones_like(low))
    place = ((rows - low) * (bins / width)).long().clamp_(max=bins - 1)
    place += torch.arange(len(rows), device=rows.device)[:, None] * bins
    return torch.bincount(place.flatten(), minlength=len(rows) * bins).view(-1, bins)


def entropy_of_counts(counts: Tensor, correct: bool = False) -> Tensor:
    """Return the entropy in nats of each row of counts, at most log(bins): (R, bins) -> (R,).

    Args:
        counts: (R, bins) counts.
        correct: add the correction of Miller and Madow for few samples.

    Returns:
        (R,) entropies.
    """
    counts = counts.double()
    total = counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(counts / total).sum(dim=1)
    if correct:
        entropy = entropy + ((counts > 0).sum(dim=1) - 1).clamp(min=0) / (2 * total[:, 0])
    return entropy.clamp(max=math.log(counts.shape[1]))


def pixel_entropy(maps: Tensor) -> Tensor:
    """Return the entropy over the pixels of each map of the softmax of squared deviations from its mean, over log(H W).

    Source: Shao et al., "Filter Pruning via Measuring Feature Map Information", Sensors 2021, 21, 6601. Known defect
    of the
    formula: a constant (dead) map gets the largest entropy.

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, C) in [0, 1]; 0 for maps of one pixel.
    """
    flat = maps.flatten(2).double()
    if flat.shape[2] == 1:
        return flat.new_zeros(flat.shape[:2])
    shares = (flat - flat.mean(dim=2, keepdim=True)).square().softmax(dim=2)
    return torch.special.entr(shares).sum(dim=2) / math.log(flat.shape[2])


def channel_entropy(means: Tensor) -> Tensor:
    """Return the entropy of how a layer's mean absolute activation is spread over its channels, over log(C).

    Args:
        means: (C,) mean absolute activation of each channel.

    Returns:
        A scalar in [0, 1]; 0 for one channel or a dead layer.
    """
    if len(means) == 1 or not means.sum() > 0:
        return means.new_zeros(())
    return torch.special.entr(means / means.sum()).sum() / math.log(len(means))
