"""Measure batch norm's statistics again after a cut.

A cut changes the activations of all later layers, so the means and variances that batch norm has stored are wrong.
Measuring them again needs no gradients and a few batches, and often restores most of the accuracy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infoprune.calibration import as_batches, evaluating, on_device, run, split_batch
from infoprune.criteria.checks import check_finite
from infoprune.distributed import all_or_none, process, sum_over_processes, world_size
from infoprune.errors import ConfigurationError, DataError
from infoprune.network_batches import taken_by
from infoprune.registry import check_count

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

OWNER = "recalibration"


def recalibrate(
    model: nn.Module,
    data: Iterable[Any] | LightningDataModule,
    batches: int | None = None,
    *,
    leave: Collection[str] = (),
) -> None:
    """Replace batch norm's running means and variances by those of some training batches.

    As in training, each batch is normalised by its own statistics in its pass through the model; everything else
    (for example, dropout) is in eval mode. In the end a layer has the mean and the unbiased variance of all its inputs,
    as if all batches were one, whatever their sizes. That is larger than the average of the batches' variances, and
    more accurate than the usual moving average, which depends on the last few batches.

    Use images as in training, augmentation included: a ResNet-56 trained on CIFAR-10 with crop and flip
    loses more than a point with statistics of 2,000 plain images and nothing with those of cropped and flipped images.

    On several processes pass the same data to all. Each process takes every n-th batch, and all end with the
    statistics that a single process would have computed.

    Args:
        model: The model, changed in place: the running statistics, and ``num_batches_tracked``, which becomes the
            number of batches, so that a layer with ``momentum=None`` continues to average from there. Layers that the
            forward does not reach keep their statistics; after an error, all layers do. Train/eval flags, grad
            mode and random state are unchanged.
        data: Batches of training images: tensors, ``(inputs, targets, ...)``, mappings of keyword inputs, or mappings
            with an image among other things; or a LightningDataModule after ``setup("fit")``, for its training batches.
        batches: Number of batches to use; all by default.
        leave: Names of layers that keep their statistics and normalise by them.

    Raises:
        ConfigurationError: the model has no batch norm with running statistics.
        DataError: there is no batch, or the inputs of a layer are NaN, infinite or a single value.

    Source: the idea is PreciseBN's (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        >>> images = [torch.randn(4, 1, 8, 8), torch.randn(2, 1, 8, 8)]
        >>> recalibrate(net, images)
        >>> torch.allclose(net[1].running_mean, net[0](torch.cat(images)).mean(dim=(0, 2, 3)))
        True
    """
    if batches is not None:
        check_count(OWNER, "batches", batches, 1)
    norms = {name: norm for name, norm in check_norms(model).items() if name not in leave}
    tallies = {name: _Pooled(norm.num_features) for name, norm in norms.items()}
    with evaluating(model), torch.no_grad(), _statistics_of_the_batch(norms, tallies), all_or_none():
        seen = _show(model, as_batches(data), batches)
    for tally in tallies.values():
        tally.over_processes()
    measured = {name: tally.statistics(name) for name, tally in tallies.items() if tally.count}
    for name, statistics in measured.items():
        norm = norms[name]
        _write(norm, *statistics)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(seen)


def tracked_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers that :func:`recalibrate` measures, by name: batch norm that keeps running statistics.

    Args:
        model: the model.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def check_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers of :func:`tracked_norms`; raise a ConfigurationError if there are none.

    Args:
        model: the model.
    """
    norms = tracked_norms(model)
    if not norms:
        raise ConfigurationError(
            f"{type(model).__name__} has no batch norm with running statistics, so there is nothing to recalibrate: "
            "leave recalibration out"
        )
    return norms


def _show(model: nn.Module, data: Iterable[Any], batches: int | None) -> int:
    """Run this process's share of the batches through the model; return the number of all processes' images."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    seen = 0
    for batch in islice(data, batches):
        if seen % world_size() == process():
            inputs, _ = split_batch(batch, OWNER)
            run(model, on_device(device, taken_by(model, inputs)))
        seen += 1
    if not seen:
        raise DataError(f"{OWNER}: the data holds no batch; pass batches of training images")
    return seen


@contextmanager
def _statistics_of_the_batch(norms: dict[str, _BatchNorm], tallies: dict[str, _Pooled]) -> Iterator[None]:
    """Let every layer normalise a batch by the batch's statistics in the block, and add these to the layer's tally.

    They are written where eval mode reads them. So each layer runs its own forward, whatever its class, without
    momentum, without the synchronisation that SyncBatchNorm does in train mode, and without a count of batches.
    """
    stored = {name: [buffer.clone() for buffer in _running(norm)] for name, norm in norms.items()}

    def measure(name: str, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        _write(norm, *tallies[name].add(inputs[0]))

    handles = [
        norm.register_forward_pre_hook(lambda module, inputs, name=name: measure(name, module, inputs))
        for name, norm in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, norm in norms.items():
            _write(norm, *stored[name])


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _write(norm: _BatchNorm, *statistics: Tensor) -> None:
    for buffer, values in zip(_running(norm), statistics, strict=True):
        buffer.copy_(values)


class _Pooled:
    """Count, mean and summed squared deviation of all values of each channel, pooled batch by batch in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0.0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch (N, C, ...); returns its mean and its biased variance."""
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        variance, mean = torch.var_mean(values, dim=[0, *range(2, values.dim())], correction=0)
        count = values.numel() / values.shape[1]
        # Chan, Golub and LeVeque's update: no difference of large sums
        total = self.count + count
        away = mean.to("cpu", torch.float64) - self.mean
        self.mean += away * (count / total)
        self.squares += variance.to("cpu", torch.float64) * count + away.square() * (self.count * count / total)
        self.count = total
        return mean, variance

    def over_processes(self) -> None:
        """Pool the statistics of all processes."""
        count = sum_over_processes(torch.tensor(self.count, dtype=torch.float64)).item()
        mean = sum_over_processes(self.mean * self.count) / max(count, 1.0)
        between = self.count * (self.mean - mean).square()
        self.count, self.mean, self.squares = count, mean, sum_over_processes(self.squares + between)

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance."""
        if self.count < 2:
            raise DataError(
                f"{OWNER}: {name} saw a single value of each channel, which has no variance; pass more images"
            )
        check_finite(torch.stack([self.mean, self.squares]), name, "the statistics of its inputs")
        return self.mean, self.squares / (self.count - 1)
