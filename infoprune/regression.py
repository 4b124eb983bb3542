"""Write layers as linear regressions: rows of inputs and outputs, the moments and covariance of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
"""What can be written so: 2-D convolutions without groups, and linear layers."""


MOST_COLUMNS = 8192
"""A layer that reads more numbers at a position is left out: its covariance would take more than 512 MiB."""

LEAST_RIDGE = torch.finfo(torch.float32).eps
"""Sums of products of float32 numbers are no more exact than that: dependent inputs need this ridge at least."""

LEAST_VARIANCE = 1e-12
"""Variance that rounding leaves of an input that never changes, as a share of its mean square."""

ROWS = 8192
ROWS_FOR_A_COLUMN = 4
"""So many positions tell the covariance of a layer's inputs: a number, and more for each column."""

AT_ONCE = 16
"""Images whose patches are written out at a time."""


def is_regression(module: nn.Module | None) -> TypeGuard[Layer]:
    """Return whether a layer's outputs are a linear function of patches of its inputs that `input_rows` can write.

    A class of its own with another forward (standardised weights, padding that depends on the image) is none.

    Args:
        module: any module.

    Example:
        >>> is_regression(nn.Conv2d(4, 8, 3)), is_regression(nn.Conv2d(4, 8, 3, groups=2)), is_regression(nn.ReLU())
        (True, False, False)
    """
    if isinstance(module, nn.Conv2d):
        plain = _runs(module, nn.Conv2d, "forward") and _runs(module, nn.Conv2d, "_conv_forward")
        return plain and module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear) and _runs(module, nn.Linear, "forward")


def _runs(module: nn.Module, kind: type[nn.Module], method: str) -> bool:
    return getattr(type(module), method) is getattr(kind, method) and method not in vars(module)


def input_rows(layer: Layer, inputs: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return what a layer reads at some positions of its output, in the order of its flattened weight.

    Args:
        layer: the layer.
        inputs: (images, channels, height, width) of a convolution, (images, ..., channels) of a linear layer.
        most: at most so many positions of each image, drawn at random, always the same.

    Returns:
        (images x positions, columns) rows, and the (positions,) positions.
    """
    inputs = batched(layer, inputs)
    if isinstance(layer, nn.Linear):
        places = _places(inputs[0].numel() // inputs.shape[-1], most, inputs.device)
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, places].flatten(0, 1), places
    (down, right), (dilated_down, dilated_right) = _pair(layer.padding), layer.dilation
    high, wide = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            inputs.shape[2:], (down, right), layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    places = _places(high * wide, most, inputs.device)
    padded = F.pad(inputs, (right, right, down, down))
    over = torch.cartesian_prod(*(torch.arange(size, device=inputs.device) for size in layer.kernel_size)).view(-1, 2)
    y = (places // wide * layer.stride[0])[:, None] + over[:, 0] * dilated_down
    x = (places % wide * layer.stride[1])[:, None] + over[:, 1] * dilated_right
    patches = padded[:, :, y, x].transpose(1, 2)  # images, positions, channels, places of the kernel
    return patches.flatten(2).flatten(0, 1), places


def output_rows(layer: Layer, outputs: Tensor, places: Tensor) -> Tensor:
    """Return a layer's outputs at the positions that `input_rows` has chosen.

    Args:
        layer: the layer.
        outputs: (images, channels, height, width) of a convolution, (images, ..., channels) of a linear layer.
        places: (positions,) positions.

    Returns:
        (images x positions, channels) rows.
    """
    outputs = batched(layer, outputs)
    if isinstance(layer, nn.Linear):
        return outputs.reshape(len(outputs), -1, outputs.shape[-1])[:, places].flatten(0, 1)
    return outputs.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)


def batched(layer: Layer, values: Tensor) -> Tensor:
    """Return the inputs or outputs of a layer with a first dimension for images.

    Args:
        layer: the layer.
        values: its inputs or outputs, of one image or several.
    """
    return values[None] if values.dim() == (1 if isinstance(layer, nn.Linear) else 3) else values


def _pair(padding: tuple[int, ...] | str) -> tuple[int, int]:
    down, right = (int(size) for size in padding)
    return down, right


def _places(count: int, most: int, device: torch.device) -> Tensor:
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
    return chosen.to(device)


def columns_of(layer: Layer) -> int:
    """Return how many numbers a layer reads at a position.

    Args:
        layer: the layer.
    """
    return layer.weight[0].numel()


@contextmanager
def input_moments(layers: Mapping[str, Layer], images: int) -> Iterator[dict[str, Tensor]]:
    """Sum the products of 1 and the inputs of layers while a model runs in the block.

    Args:
        layers: the layers, by name.
        images: about how many images will run, for the number of positions that are taken of each.

    Yields:
        Layer name -> (1 + columns, 1 + columns) float64 sums on the CPU; zeros of a layer that does not run.
    """
    sums = {
        name: torch.zeros(1 + columns_of(layer), 1 + columns_of(layer), dtype=torch.float64)
        for name, layer in layers.items()
    }

    def observe(layer: Layer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str) -> None:
        most = -(-(ROWS + ROWS_FOR_A_COLUMN * columns_of(layer)) // images)
        inputs = batched(layer, args[0] if args else kwargs["input"])
        for some in inputs.split(AT_ONCE) if inputs.numel() else ():
            rows, _ = input_rows(layer, some, most)
            sums[name] += moments_of(rows)

    hooks = [
        layer.register_forward_pre_hook(partial(observe, name=name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def moments_of(rows: Tensor, outputs: Tensor | None = None) -> Tensor:
    """Sum the products of 1 and inputs with 1, inputs and outputs.

    The products are those of distances from the mean, so that a mean that is large beside them takes no digits away.

    Args:
        rows: (positions, columns) inputs.
        outputs: (positions, outputs) of the layer.

    Returns:
        (1 + columns, 1 + columns + outputs) float64 sums on the CPU.

    Example:
        >>> moments_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[ 2.,  4.,  6.],
                [ 4., 10., 14.],
                [ 6., 14., 20.]], dtype=torch.float64)
    """
    count, columns = rows.shape
    values = rows if outputs is None else torch.cat([rows, outputs.to(rows.dtype)], dim=1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    mean = values.mean(dim=0)
    values = values - mean
    products, rest, mean = (
        some.to("cpu", torch.float64) for some in (values[:, :columns].T @ values, values.sum(dim=0), mean)
    )
    products.addr_(mean[:columns], rest).addr_(rest[:columns] + count * mean[:columns], mean)
    total = products.new_empty(1 + columns, 1 + len(mean))
    total[0, 0], total[0, 1:], total[1:, 1:] = count, rest + count * mean, products
    total[1:, 0] = total[0, 1 : 1 + columns]
    return total


def covariance(moments: Tensor, ridge: float) -> Tensor:
    """Return the covariance of a layer's inputs, with a ridge that holds weights where they are.

    Args:
        moments: (1 + columns, 1 + columns) or more columns of sums of `moments_of`.
        ridge: what is added to the variances, relative to their mean.

    Returns:
        (columns, columns) float64 covariance.
    """
    means = moments[1:, 0] / moments[0, 0]
    found = moments[1:, 1 : len(moments)] / moments[0, 0] - means[:, None] * means
    found.diagonal().add_(held(moments, ridge))
    return found


def held(moments: Tensor, ridge: float) -> Tensor:
    """Return what `covariance` adds to the variances: never so little that dependent inputs have no solution.

    Args:
        moments: (1 + columns, 1 + columns) or more columns of sums of `moments_of`.
        ridge: what is added to the variances, relative to their mean.
    """
    squares, means = moments.diagonal()[1:] / moments[0, 0], moments[1:, 0] / moments[0, 0]
    variance = (squares - means.square()).mean()
    least = (LEAST_VARIANCE * squares.mean()).clamp_min(torch.finfo(torch.float32).tiny)
    return (max(ridge, LEAST_RIDGE) * variance).clamp_min(least)
