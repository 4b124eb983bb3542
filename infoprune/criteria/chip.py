"""Score channels by the independence of their feature maps.

Source: Sui et al., "CHIP: CHannel Independence-based Pruning for Compact Neural Networks", NeurIPS 2021; 5 batches of
128 training images as in their code. They decompose the masked matrix once more for every channel; the identity that
makes this unnecessary is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune.criteria.activations.feature_map import FeatureMapCriterion
from infoprune.criteria.criterion import CRITERIA

# Quadrature: nodes s = exp(u), equally spaced in u. The integrand is analytic for |Im u| < pi / 2, so a step of 0.5
# leaves an error of exp(-pi^2 / 0.5) = 3e-9. The nodes cover singular values from 1e-9 of the largest one to 1e4
# times it.
STEP = 0.5
NODES = torch.arange(math.log(1e-9), math.log(1e4), STEP, dtype=torch.float64).exp()

# As many images at a time as fit into this many numbers (64 MiB).
CHUNK = 1 << 23


@CRITERIA.register("chip")
@dataclass(kw_only=True)
class CHIP(FeatureMapCriterion):
    """How much the nuclear norm of a layer's feature maps (one row a channel) shrinks when a channel is masked.

    Cost: one forward pass for each image, and one symmetric eigendecomposition of the smaller Gram matrix of the maps
    for each image and layer.
    """

    def map_scores(self, maps: Tensor) -> Tensor:
        """Return one value for each map: (B, C, H, W) -> (B, C)."""
        rows, columns = maps.shape[1], maps[0, 0].numel()
        step = max(1, CHUNK // (rows * max(min(rows, columns), len(NODES))))
        return torch.cat([channel_independence(part) for part in maps.flatten(2).split(step)])


def channel_independence(matrices: Tensor) -> Tensor:
    """Return the nuclear norm of each matrix minus that of the matrix without row j, for every j.

    Write G = A A^T, and B(t) = (G + t)^-1. With sqrt(x) = 2/pi * integral over s > 0 of x / (x + s^2), and because
    removing row and column j from G takes (B^2)_jj / B_jj off the trace of B, the difference for row j is

        2/pi * integral over s > 0 of 1 - t (B(t)^2)_jj / B(t)_jj,  t = s^2,

    and one eigendecomposition G = V diag(l) V^T gives B_jj = sum_k V_jk^2 / (l_k + t) for all rows and all t at once.

    Args:
        matrices: (M, N, D) with N rows.

    Returns:
        (M, N) float64.

    Example:
        >>> channel_independence(torch.diag(torch.tensor([3.0, 2.0, 0.0]))[None]).round(decimals=6).tolist()
        [[3.0, 2.0, 0.0]]
    """
    matrices = matrices.double()
    values, weights = _spectrum(matrices)
    scale = values.amax(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    values = values / scale[:, None]
    energy = matrices.square().sum(dim=2) / scale[:, None]

    nodes = NODES.to(matrices.device)
    resolvent = 1 / (values[:, :, None] + nodes.square())
    # 1 - t (B^2)_jj / B_jj, written without the difference
    integrand = (weights @ (values[:, :, None] * resolvent.square())) / (weights @ resolvent)
    integral = STEP * (integrand * nodes).sum(dim=2)
    # Beyond the last node the integrand is G_jj / s^2, and the nodes that were left out form a geometric series.
    tail = STEP * energy / (nodes[-1] * math.expm1(STEP))
    result = (2 / math.pi) * (integral + tail) * scale.sqrt()[:, None]
    return torch.where(energy > 0, result, torch.zeros_like(result))


def _spectrum(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of A A^T, (M, K), and how much of row j lies in each eigenvector, (M, N, K).

    Both come from the smaller of the Gram matrices A A^T and A^T A.
    """
    rows, columns = matrices.shape[1:]
    if rows <= columns:
        values, vectors = torch.linalg.eigh(matrices @ matrices.mT)
        return values.clamp(min=0), vectors.square()
    values, vectors = torch.linalg.eigh(matrices.mT @ matrices)
    values = values.clamp(min=0)
    present = values > 1e-14 * values.amax(dim=1, keepdim=True)
    inverse = torch.where(present, values, torch.ones_like(values)).reciprocal() * present
    weights = (matrices @ vectors).square() * inverse[:, None, :]
    rest = (1 - weights.sum(dim=2, keepdim=True)).clamp(min=0)
    return torch.cat([values, values.new_zeros(len(values), 1)], dim=1), torch.cat([weights, rest], dim=2)
