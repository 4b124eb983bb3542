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

ROWS = 8192
ROWS_FOR_A_COLUMN = 4
"""So many positions tell the covariance of a layer's inputs: a number, and more for each column."""

AT_ONCE = 16
"""Images whose patches are written out at a time."""


def is_regression(module: nn.Module) -> TypeGuard[Layer]:
    """Return whether a layer's outputs are a linear function of patches of its inputs that `input_rows` can write.

    Args:
        module: any module.

    Example:
        >>> is_regression(nn.Conv2d(4, 8, 3)), is_regression(nn.Conv2d(4, 8, 3, groups=2)), is_regression(nn.ReLU())
        (True, False, False)
    """
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def input_rows(layer: Layer, inputs: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return what a layer reads at some positions of its output, in the order of its flattened weight.

    Args:
        layer: the layer.
        inputs: (images, channels, height, width) of a convolution, (images, ..., channels) of a linear layer.
        most: at most so many positions of each image, drawn at random, always the same.

    Returns:
        (images x positions, columns) rows, and the (positions,) positions.
    """
    inputs = _batched(layer, inputs)
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
    outputs = _batched(layer, outputs)
    if isinstance(layer, nn.Linear):
        return outputs.reshape(len(outputs), -1, outputs.shape[-1])[:, places].flatten(0, 1)
    return outputs.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)


def _batched(layer: Layer, values: Tensor) -> Tensor:
    """Return the inputs or outputs of a layer with a first dimension for images."""
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
        for some in (args[0] if args else kwargs["input"]).split(AT_ONCE):
            rows, _ = input_rows(layer, some, most)
            rows = torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1).float()
            sums[name] += (rows.T @ rows).to("cpu", torch.float64)

    hooks = [
        layer.register_forward_pre_hook(partial(observe, name=name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def covariance(moments: Tensor, ridge: float) -> Tensor:
    """Return the covariance of a layer's inputs, with a ridge that holds weights where they are.

    Args:
        moments: (1 + columns, 1 + columns) sums of `input_moments`.
        ridge: what is added to the variances, relative to their mean.

    Returns:
        (columns, columns) float64 covariance.
    """
    means = moments[0, 1:] / moments[0, 0]
    found = moments[1:, 1:] / moments[0, 0] - means[:, None] * means
    found.diagonal().add_(ridge * found.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    return found
