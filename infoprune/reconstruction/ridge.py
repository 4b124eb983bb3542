"""Solve the ridge regression of a layer, with or without a batch norm after it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from infoprune.regression import AT_ONCE, Layer, batched, covariance, held, input_rows, moments_of, output_rows


class Solution(NamedTuple):
    """New values of a layer, and of the batch norm after it.

    Attributes:
        weight: (outputs, columns).
        bias: (outputs,) of the layer; None: it has none, or keeps it.
        norm_weight: (outputs,); None without a batch norm.
        norm_bias: (outputs,); None without a batch norm.
    """

    weight: Tensor
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


def moments_on(layer: Layer, inputs: Tensor, wanted: Tensor, most: int) -> Tensor:
    """Sum the products of 1, inputs and target outputs over positions.

    Args:
        layer: the layer.
        inputs: its inputs.
        wanted: its target outputs, in the shape of its outputs.
        most: at most so many positions of each image.

    Returns:
        (1 + columns, 1 + columns + outputs) sums in float64.
    """
    inputs, wanted = batched(layer, inputs), batched(layer, wanted)
    columns, outputs = layer.weight[0].numel(), len(layer.weight)
    total = torch.zeros(1 + columns, 1 + columns + outputs, dtype=torch.float64)
    if inputs.numel():
        for some, outputs_of_some in zip(inputs.split(AT_ONCE), wanted.split(AT_ONCE), strict=True):
            rows, places = input_rows(layer, some, most)
            total += moments_of(rows, output_rows(layer, outputs_of_some, places))
    return total


def solve(moments: Tensor, weight: Tensor, ridge: float, biased: bool) -> Solution:
    """Return the solution of the ridge regression around the present weights.

    A layer without a bias is fitted up to a constant, which the batch norm after it removes.

    Args:
        moments: sums of `moments_on`.
        weight: (outputs, columns) the present weights in float64.
        ridge: strength of the penalty on changes, relative to the mean variance of the inputs.
        biased: whether the layer has a bias.
    """
    columns, means = weight.shape[1], moments[0, 1:] / moments[0, 0]
    fitted = _regression(moments, weight, ridge)
    return Solution(fitted, means[columns:] - fitted @ means[:columns] if biased else None)


def solve_behind_norm(moments: Tensor, weight: Tensor, ridge: float, eps: float) -> Solution:
    """Return the regression to target outputs after a batch norm, and the batch norm's scale and shift.

    Batch norm removes the scale of a filter, so filters keep their length, and batch norm's weight carries the scale
    of the fit. The penalty is on changes from the present weights, each filter scaled for the best fit.

    Args:
        moments: sums of `moments_on`.
        weight: (outputs, columns) the present weights in float64.
        ridge: strength of the penalty on changes, relative to the mean variance of the inputs.
        eps: of the batch norm.
    """
    columns, means = weight.shape[1], moments[0, 1:] / moments[0, 0]
    inner = covariance(moments, 0)
    scale = (weight * _cross(moments, columns).T).sum(dim=1) / _variance(weight, inner)
    fitted = _regression(moments, weight * scale.nan_to_num(0, 0, 0)[:, None], ridge)
    longer = (weight.norm(dim=1) / fitted.norm(dim=1)).nan_to_num(1, 1)
    longer[longer == 0] = 1
    rescaled = fitted * longer[:, None]
    deviation = (_variance(rescaled, inner) + eps).sqrt()
    return Solution(rescaled, None, deviation / longer, means[columns:])


def _regression(moments: Tensor, weight: Tensor, ridge: float) -> Tensor:
    cross = _cross(moments, weight.shape[1])
    return torch.linalg.solve(covariance(moments, ridge), cross + held(moments, ridge) * weight.T).T


def _cross(moments: Tensor, columns: int) -> Tensor:
    """Return the (columns, outputs) covariance of inputs and outputs."""
    means = moments[0, 1:] / moments[0, 0]
    return moments[1:, 1 + columns :] / moments[0, 0] - means[:columns, None] * means[columns:]


def _variance(weight: Tensor, inner: Tensor) -> Tensor:
    return ((weight @ inner) * weight).sum(dim=1)
