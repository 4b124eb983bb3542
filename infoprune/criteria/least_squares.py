"""Score units by the error that remains in the layers that read them after these layers are refitted without them.

Source: the objective is that of He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
arXiv 1707.06168. Units are removed one by one by the rule of Hassibi & Stork, "Second order derivatives for network
pruning: Optimal Brain Surgeon", NIPS 1992, for whole blocks of weights, as in Kurtic et al., "ZipLM: Inference-Aware
Structured Pruning of Language Models", NeurIPS 2023, arXiv 2302.04089.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from infoprune.calibration import batches, evaluating, run
from infoprune.criteria.criterion import CRITERIA, Criterion, Scores
from infoprune.criteria.norms import L2
from infoprune.distributed import all_or_none, sum_over_processes
from infoprune.errors import DataError
from infoprune.registry import check_count, check_number
from infoprune.regression import MOST_COLUMNS, Layer, columns_of, covariance, input_moments, is_regression

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure

SHARE = 16
"""In large groups, this fraction (one in so many) of the units is removed at a time."""


class Reader(NamedTuple):
    """A layer that reads the units of a group.

    Attributes:
        weight: (outputs, columns), each row divided by the standard deviation of its output.
        covariance: (columns, columns) of the layer's inputs.
        unit: (columns,) which unit a column belongs to; -1: none of this group.
    """

    weight: Tensor
    covariance: Tensor
    unit: Tensor


@CRITERIA.register("least_squares")
@dataclass(kw_only=True)
class LeastSquares(Criterion):
    """Compute the error of the layers that read a unit, refitted by least squares without it and all lower units.

    The error is a share of the variance of a layer's outputs, averaged over its outputs and summed over the layers that
    read the group. The unit that adds the least error is removed next. Use it with `infoprune.reconstruct`, which fits
    the same layers: units that others can replace are removed first. The refitted layers ("readers") are 2-D
    convolutions without groups and linear layers with up to 8,192 inputs per position; a group without any is scored by
    the L2 norm of its filters.

    Cost: one forward pass for each image, and the covariance and inverse of each reader's inputs; the covariances of
    all readers are in memory at once, at most 512 MiB each.

    Args:
        images: Number of calibration images over all processes; all of the data if it holds fewer.
        ridge: Strength of the ridge penalty on changes of the weights, relative to the mean variance of a layer's
            inputs.

    Raises:
        DataError: the data holds no image, or a layer's inputs are not finite.
    """

    images: int = 512
    ridge: float = 0.01

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.label, "images", self.images, 1)
        check_number(self.label, "ridge", self.ridge, 0)

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Return group name -> (units,) errors."""
        modules = dict(model.named_modules())  # some layers are bare parameters
        layers = {
            layer.name: module
            for layer in structure.layers
            if is_regression(module := modules.get(layer.name)) and columns_of(module) <= MOST_COLUMNS
        }
        moments = self._moments(model, layers, data or ())
        norms = L2().group_scores(model, structure, None)
        scores: Scores = {}
        for group in structure.prunable:
            readers = [
                self._reader(layers[name], moments[name], slots)
                for name, slots in _slots_by_reader(group).items()
                if name in moments
            ]
            if readers:
                scores[group.name] = removal_errors(readers, group.size)
            elif group.name in norms:
                scores[group.name] = norms[group.name]
        return scores

    def _moments(self, model: nn.Module, layers: Mapping[str, Layer], data: Iterable[Any]) -> dict[str, Tensor]:
        """Return the summed products of 1 and inputs, (1 + columns, 1 + columns), of all layers that run."""
        with input_moments(layers, self.images) as sums, evaluating(model), torch.no_grad(), all_or_none():
            for inputs, _, count in batches(model, data, self.images, self.label):
                if count:
                    run(model, inputs)
        totals = {name: sum_over_processes(total) for name, total in sums.items()}
        for name, total in totals.items():
            if not bool(torch.isfinite(total).all()):
                raise DataError(f"{self.label}: the inputs of layer {name!r} are not finite; give other images")
        return {name: total for name, total in totals.items() if total[0, 0] > 0}

    def _reader(self, layer: Layer, moments: Tensor, slots: Sequence[tuple[Tensor, Tensor]]) -> Reader:
        """Return a layer as a reader of a group.

        Args:
            layer: the layer.
            moments: the summed products of its inputs.
            slots: pairs of input channels and the units that they belong to.
        """
        weight = layer.weight.detach().flatten(1).to("cpu", torch.float64)
        variance = ((weight @ covariance(moments, 0)) * weight).sum(dim=1)
        scale = torch.where(variance > 0, variance.clamp_min(torch.finfo(torch.float32).tiny).rsqrt(), 0)
        unit = torch.full((layer.weight.shape[1],), -1)
        for channels, units in slots:
            unit[channels] = units
        inputs = weight.shape[1] // layer.weight.shape[1]
        return Reader(weight * scale[:, None], covariance(moments, self.ridge), unit.repeat_interleave(inputs))


def removal_errors(readers: Sequence[Reader], units: int) -> Tensor:
    """Remove units one by one, always the unit that adds the least error; return the error at each removal.

    Args:
        readers: the layers that read the units.
        units: how many there are.

    Returns:
        (units,) errors: the squared error of a reader's least-squares fit without the unit and all units removed
        before, averaged over its outputs and summed over readers. In large groups a sixteenth of the remaining units
        is removed at a time.

    Example:
        >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) + 1e-6 * torch.eye(3)
        >>> removal_errors([Reader(torch.ones(1, 3), twins, torch.arange(3))], 3).round(decimals=2)
        tensor([0., 5., 1.], dtype=torch.float64)
    """
    fits = [_Fit(reader) for reader in readers]
    left = torch.arange(units)
    errors = torch.zeros(units, dtype=torch.float64)
    total = 0.0
    while len(left):
        added = sum((fit.added(left) for fit in fits), torch.zeros(len(left), dtype=torch.float64))
        order = added.argsort(stable=True)[: max(1, len(left) // SHARE)]
        gone = left[order]
        errors[gone] = total + added[order]
        total += sum(fit.remove(gone) for fit in fits)
        left = left[~torch.isin(left, gone)]
    return errors


class _Fit:
    """A reader's weights, fitted to its remaining inputs."""

    def __init__(self, reader: Reader) -> None:
        own = reader.unit >= 0
        self._weight = reader.weight[:, own].double()
        self._inverse = torch.linalg.inv(reader.covariance.double())[own][:, own]
        self._unit = reader.unit[own]

    def added(self, units: Tensor) -> Tensor:
        """Return the (units,) errors that the removal of each unit alone adds."""
        columns = self._unit == units[:, None]
        counts = columns.sum(dim=1)
        errors = torch.zeros(len(units), dtype=torch.float64)
        for count in counts.unique().tolist():
            if count:
                some = counts == count
                index = columns[some].nonzero()[:, 1].view(-1, count)
                blocks = self._inverse[index[:, :, None], index[:, None, :]]
                weights = self._weight[:, index].permute(1, 2, 0)  # units, columns, outputs
                errors[some] = (weights * torch.linalg.solve(blocks, weights)).sum(dim=(1, 2))
        return errors / len(self._weight)

    def remove(self, units: Tensor) -> float:
        """Fit the weights without some units; return the error that this adds."""
        goes = torch.isin(self._unit, units)
        weights, rows = self._weight[:, goes], self._inverse[goes]
        update = torch.linalg.solve(rows[:, goes], rows[:, ~goes])
        error = (weights.T * torch.linalg.solve(rows[:, goes], weights.T)).sum().item()
        self._weight = self._weight[:, ~goes] - weights @ update
        self._inverse = self._inverse[~goes][:, ~goes] - self._inverse[~goes][:, goes] @ update
        self._unit = self._unit[~goes]
        return error / len(weights)


def _slots_by_reader(group: ChannelGroup) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return the input channels that layers read of a group, with their units, by the layer's name."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for slot in group.slots:
        layer, _, tensor = slot.tensor.rpartition(".")
        if tensor == "weight" and slot.dim == 1:
            found.setdefault(layer, []).append((torch.as_tensor(slot.index), torch.as_tensor(slot.unit)))
    return found
