"""`Criterion`: the base of all criteria, from scores of filters to scores of units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.criteria.aggregation import COMBINE, NORMALIZE, combine_members
from infoprune.criteria.checks import as_scores, check_mapping, check_weights
from infoprune.criteria.filters import as_filters, scored_layers, weight_of
from infoprune.criteria.preserved import preserved
from infoprune.errors import ConfigurationError, nearest
from infoprune.part import Part
from infoprune.random_state import undisturbed
from infoprune.registry import Registry, check_choice
from infoprune.values import without_values

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, GroupSlot, Structure

SLICE = 1 << 18
"""Number of weights that are scored at once if filters can be scored one by one."""

Scores = dict[str, Tensor]
"""Group name -> float64 CPU tensor (units,), higher = keep. Only prunable groups."""


@dataclass(kw_only=True)
class Criterion(Part):
    """Score every unit of every prunable group; higher = keep.

    Most criteria score the filters of one layer at a time and derive from :class:`LayerCriterion`.

    Raises:
        ConfigurationError: an option that does not exist, or (when called) NaN or infinite weights or scores; the
            message names the layer.
    """

    kind: ClassVar[str] = "criterion"
    needs_data: ClassVar[bool] = False
    as_trained: ClassVar[bool] = False
    """Whether images should be transformed as in training, if the data offers that, not as in evaluation."""
    sees_model: ClassVar[bool] = True
    """Whether the criterion's own code gets the model, which is then saved before and restored after."""

    @abstractmethod
    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Score the units of every prunable group that can be scored.

        Args:
            model: The model that ``structure`` was traced from, in eval mode.
            structure: Its channel groups.
            data: Batches of training images; None if there are none.

        Returns:
            Group name -> (units,) scores, higher = keep, for groups of ``structure.prunable``.
        """

    def __call__(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None = None) -> Scores:
        """Score every unit of every prunable group.

        Args:
            model: The model that ``structure`` was traced from. It is restored afterwards, see :func:`preserved`.
            structure: Its channel groups.
            data: Batches of training images for criteria that need them, ignored by the others. Its attribute
                ``as_trained``, if any, has the same images transformed as in training, for criteria that need these.

        Returns:
            Group name -> (units,) float64 scores on the CPU.

        Raises:
            ConfigurationError: no data, weights or scores that are not finite, scores of a wrong shape or of an unknown
                group, or an exception in the criterion's code.
        """
        if self.needs_data and data is None:
            raise ConfigurationError(f"{self.label} scores with data: pass batches of training images as data")
        check_weights(model)
        if self.as_trained:
            data = getattr(data, "as_trained", data)
        gradients = torch.set_grad_enabled(torch.is_grad_enabled())  # restored even if the code switches them
        with self.named_in_errors("while scoring"), self._guarded(model), gradients:
            try:
                scores = self.group_scores(model, structure, data)
            except NotImplementedError as error:  # what PyTorch raises where a value is read that is not there
                empty = without_values(model)
                if not empty:
                    raise
                raise ConfigurationError(
                    f"{self.label} reads weights, and {empty[0]} is on the meta device and has none: load the weights "
                    "first"
                ) from error
        return self._checked(scores, structure)

    def _guarded(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context that restores everything that the code inside may change."""
        modules = list(model.modules())
        if self.sees_model or any("parametrizations" in module._modules for module in modules):  # which run their code
            return preserved(model)
        return undisturbed(*{p.device for module in modules for p in module._parameters.values() if p is not None})

    def _checked(self, scores: Scores, structure: Structure) -> Scores:
        """Return the scores as float64 on the CPU; refuse unknown groups and anything but a finite score per unit."""
        check_mapping(self.label, scores, "group")
        sizes = {group.name: group.size for group in structure.groups}
        for name in scores:
            if name not in sizes:
                raise ConfigurationError(
                    f"{self.label} scores a group {name!r}, which the structure does not have{nearest(name, sizes)}; "
                    "score the groups of structure.prunable by their names"
                )
        return {
            name: as_scores(self.label, values, (sizes[name],), f"the {sizes[name]} units of group {name!r}")
            for name, values in scores.items()
        }


@dataclass(kw_only=True)
class LayerCriterion(Criterion):
    """Score the filters of single layers.

    The scores of a group's units are computed from the layers that feed it. If a unit has several filters in a layer,
    their scores are averaged. If several layers are coupled (for example, their outputs are added), each layer's unit
    scores are first brought to a common scale. A group with one layer keeps the criterion's own values.

    Args:
        normalize: Common scale for coupled layers: ``"minmax"`` to [0, 1] (a constant layer gives 0), ``"mean"``
            divides by the mean absolute score, ``"none"`` leaves the values.
        combine: How coupled layers are combined: ``"mean"``, ``"sum"`` or ``"max"``.
    """

    normalize: str = "minmax"
    combine: str = "mean"

    def __post_init__(self) -> None:
        check_choice(self.label, "normalize", self.normalize, NORMALIZE)
        check_choice(self.label, "combine", self.combine, COMBINE)

    @abstractmethod
    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Score the filters of every layer that feeds a prunable group.

        Args:
            model: The model that ``structure`` was traced from, in eval mode.
            structure: Its channel groups and layers.
            data: Batches of training images; None if there are none.

        Returns:
            Layer name -> (filters,) scores, higher = keep.
        """

    def members(self, model: nn.Module, structure: Structure, group: ChannelGroup) -> list[tuple[str, GroupSlot]]:
        """Return the scored layers of a group.

        Args:
            model: The model that ``structure`` was traced from.
            structure: Its channel groups.
            group: One of them.

        Returns:
            The name of each layer, and the slot that maps its filters to units.
        """
        return [(layer.name, slot) for layer, slot in structure.producers(group)]

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Score the layers and combine them group by group."""
        of_layer = self.layer_scores(model, structure, data)
        check_mapping(self.label, of_layer, "layer")
        scores: Scores = {}
        for group in structure.prunable:
            members = self.members(model, structure, group)
            rows = [(self._scores_of(of_layer, name, slot, structure), slot) for name, slot in members]
            if rows:
                scores[group.name] = combine_members(rows, group.size, self.normalize, self.combine)
        return scores

    def _scores_of(self, of_layer: Mapping[str, Tensor], name: str, slot: GroupSlot, structure: Structure) -> Tensor:
        """Return the scores of a layer; refuse them if they are missing or not one for each filter."""
        if name not in of_layer:
            raise ConfigurationError(
                f"{self.label} gives no scores for layer {name!r}{nearest(name, of_layer)}; score every layer that "
                "feeds a prunable group, by the names in structure.layers"
            )
        filters = structure.shapes[slot.tensor][slot.dim]
        return as_scores(self.label, of_layer[name], (filters,), f"the {filters} filters of layer {name!r}")


class WeightCriterion(LayerCriterion):
    """A criterion that reads the filters of one layer at a time, and nothing else."""

    filterwise: ClassVar[bool] = False
    """Whether the score of a filter depends on that filter alone. Filters then come in slices that fit the cache."""

    sees_model: ClassVar[bool] = False

    sums_in_float64: ClassVar[bool] = False
    """Whether the criterion itself sums in float64. Filters are then the weights themselves: not to be written to."""

    @abstractmethod
    def filter_scores(self, filters: Tensor) -> Tensor:
        """Score the filters of one layer.

        Args:
            filters: (N, C, K): N filters of C kernels with K weights each; K = 1 for 1x1 convolutions and linear
                layers, C = 1 for depthwise convolutions. Float64 unless ``sums_in_float64`` is set.

        Returns:
            (N,) scores, higher = keep.
        """

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Score every layer that feeds a prunable group; ``data`` is not used."""
        return {layer.name: self._score(layer.name, weight_of(model, layer)) for layer in scored_layers(structure)}

    def _score(self, layer: str, weight: Tensor) -> Tensor:
        size = max(SLICE * len(weight) // max(weight.numel(), 1), 1) if self.filterwise else len(weight)
        dtype = weight.dtype if self.sums_in_float64 else torch.float64
        parts = weight.split(size)
        with self.named_in_errors(f"on layer {layer!r}"):
            scores = [self.filter_scores(as_filters(part, dtype, copy=not self.sums_in_float64)) for part in parts]
        if len(parts) == 1:
            return scores[0]  # checked with the scores of all layers
        pairs = zip(scores, map(len, parts), strict=True)
        of = f"filters of layer {layer!r}"
        return torch.cat([as_scores(self.label, found, (count,), f"the {count} {of}") for found, count in pairs])


CRITERIA: Registry[Criterion] = Registry(Criterion)  # type: ignore[type-abstract]


def get_criterion(spec: str | Mapping[str, Any] | Criterion) -> Criterion:
    """Return the criterion that ``spec`` names.

    Args:
        spec: ``"l1"``, ``{"name": "capacity_independence", "balance": 0.3}``, or a criterion, returned as it is.

    Raises:
        ConfigurationError: unknown criterion or option; the message gives the nearest known one.

    Example:
        >>> get_criterion("l1").options
        {'normalize': 'minmax', 'combine': 'mean'}
    """
    return CRITERIA.build(spec)
