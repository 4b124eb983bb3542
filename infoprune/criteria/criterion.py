"""What every criterion has in common: from scores of filters to scores of units."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from infoprune.calibration import preserved
from infoprune.criteria.aggregation import COMBINE, NORMALIZE, combine_members
from infoprune.errors import ConfigurationError, nearest
from infoprune.registry import Registry, check_choice

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, GroupSlot, Layer, Structure

SLICE = 1 << 18
"""So many weights are scored at once where filters can be scored one by one."""

Scores = dict[str, Tensor]
"""Group name -> float64 CPU tensor (units,), higher = keep. Only prunable groups."""


@dataclass(kw_only=True)
class Criterion(ABC):
    """Scores every unit of every prunable group; higher = keep.

    Most criteria score the filters of one layer at a time and derive from :class:`LayerCriterion`.

    Raises:
        ConfigurationError: an option that does not exist, or (when called) NaN or infinite weights or scores; the
            message names the layer.
    """

    name: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False
    as_trained: ClassVar[bool] = False
    """Whether images should be transformed as in training, where the data offers that, not as in evaluation."""

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", "")  # what derives from a registered criterion is not that criterion

    @property
    def short_name(self) -> str:
        """Return the registered name, or the name of the class where it is not registered."""
        return self.name or type(self).__name__

    @property
    def label(self) -> str:
        """Return what messages call this criterion."""
        return f"criterion {self.name!r}" if self.name else type(self).__name__

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as a run record keeps them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    @abstractmethod
    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Score the units of every prunable group that can be scored: group name -> (units,)."""

    def __call__(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None = None) -> Scores:
        """Score every unit of every prunable group.

        Args:
            model: The model that ``structure`` was traced from. It is not changed.
            structure: Its channel groups.
            data: Batches of training images for criteria that need them, ignored by the others. If it has an attribute
                ``as_trained``, the same images as in training, criteria that want them so take that.
        """
        if self.needs_data and data is None:
            raise ConfigurationError(f"{self.label} scores with data: pass batches of training images as data")
        check_weights(model)
        if self.as_trained:
            data = getattr(data, "as_trained", data)
        try:
            with preserved(model):
                scores = self.group_scores(model, structure, data)
        except NotImplementedError as error:  # what PyTorch raises where a value is read that is not there
            empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
            if empty is None:
                raise
            raise ConfigurationError(
                f"{self.label} reads weights, and {empty} is on the meta device and has none: load the weights first"
            ) from error
        self._check_groups(scores, structure)
        return scores

    def _check_groups(self, scores: Scores, structure: Structure) -> None:
        """Refuse scores of unknown groups, of too few or too many units, or that are not finite."""
        sizes = {group.name: group.size for group in structure.groups}
        for name, values in scores.items():
            if name not in sizes:
                raise ConfigurationError(
                    f"{self.label} scores a group {name!r}, which the structure does not have{nearest(name, sizes)}; "
                    "score the groups of structure.prunable by their names"
                )
            if tuple(values.shape) != (sizes[name],):
                raise ConfigurationError(
                    f"{self.label} gives scores of shape {tuple(values.shape)} for group {name!r}, which has "
                    f"{sizes[name]} units; return one score for each unit"
                )
            check_finite(values, name, f"the scores of {self.label}")


@dataclass(kw_only=True)
class LayerCriterion(Criterion):
    """Scores the filters of single layers.

    What the units of a group get from the layers that feed it is decided here: a unit with several filters in a layer
    takes their mean, and where several layers are coupled (their outputs are added, say), each layer's unit scores
    are first brought to a common scale. A group with one layer keeps the criterion's own values.

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

        Returns:
            Layer name -> (filters,) scores, higher = keep.
        """

    def members(self, model: nn.Module, structure: Structure, group: ChannelGroup) -> list[tuple[str, GroupSlot]]:
        """Return the scored layers of a group, each with the slot that maps its filters to units."""
        return [(layer.name, slot) for layer, slot in structure.producers(group)]

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Score the layers and combine them group by group."""
        of_layer = {}
        for name, values in self.layer_scores(model, structure, data).items():
            of_layer[name] = values.detach().to("cpu", torch.float64)
            check_finite(of_layer[name], name, f"the scores of {self.label}")
        scores: Scores = {}
        for group in structure.prunable:
            members = self.members(model, structure, group)
            rows = [(self._scores_of(of_layer, name, slot, structure), slot) for name, slot in members]
            if rows:
                scores[group.name] = combine_members(rows, group.size, self.normalize, self.combine)
        return scores

    def _scores_of(self, of_layer: Mapping[str, Tensor], name: str, slot: GroupSlot, structure: Structure) -> Tensor:
        """Return the scores of a layer, or refuse where they are missing or not one for each filter."""
        if name not in of_layer:
            raise ConfigurationError(
                f"{self.label} gives no scores for layer {name!r}{nearest(name, of_layer)}; score every layer that "
                "feeds a prunable group, by the names in structure.layers"
            )
        values, filters = of_layer[name], structure.shapes[slot.tensor][slot.dim]
        if tuple(values.shape) != (filters,):
            raise ConfigurationError(
                f"{self.label} gives scores of shape {tuple(values.shape)} for layer {name!r}, which has {filters} "
                "filters; return one score for each filter"
            )
        return values


class WeightCriterion(LayerCriterion):
    """A criterion that looks at the filters of one layer at a time, and at nothing else."""

    filterwise: ClassVar[bool] = False
    """Whether the score of a filter depends on that filter alone. Filters then come in slices that fit the cache."""

    sums_in_float64: ClassVar[bool] = False
    """Whether the criterion itself sums in float64. Filters then come in the weights' own precision, unconverted."""

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
        return {layer.name: self._score(weight_of(model, layer)) for layer in scored_layers(structure)}

    def _score(self, weight: Tensor) -> Tensor:
        size = max(SLICE * len(weight) // max(weight.numel(), 1), 1) if self.filterwise else len(weight)
        dtype = weight.dtype if self.sums_in_float64 else torch.float64
        return torch.cat([self.filter_scores(as_filters(part, dtype)) for part in weight.split(size)])


CRITERIA: Registry[Criterion] = Registry("criterion", Criterion)  # type: ignore[type-abstract]


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


def scored_layers(structure: Structure) -> list[Layer]:
    """Return the layers whose filters belong to a prunable group, each once, in forward order."""
    wanted = {layer.name for group in structure.prunable for layer, _ in structure.producers(group)}
    return [layer for layer in structure.layers if layer.name in wanted]


def weight_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return the kernel that a layer computes with, its filters along the first dimension.

    Masks (``torch.nn.utils.prune``), weight norm, spectral norm and parametrizations count: a masked weight is zero.
    """
    parameter = model.get_parameter(layer.weight).detach()
    with torch.no_grad():
        kernel = _computed_kernel(model, layer.weight)
    # What is computed in another shape (a low-rank product, say) has no dimension that is known to hold the filters.
    return (parameter if kernel is None or kernel.shape != parameter.shape else kernel).movedim(layer.dim, 0)


def _computed_kernel(model: nn.Module, weight: str) -> Tensor | None:
    """Return what PyTorch's own utilities compute from a weight before each forward; None for a plain parameter."""
    path, _, attribute = weight.rpartition(".")
    if ".parametrizations." in f".{weight}":
        owner, _, attribute = f".{path}".rpartition(".parametrizations.")
        return cast(Tensor, getattr(model.get_submodule(owner.strip(".")), attribute))
    module = model.get_submodule(path)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and attribute == f"{hook._tensor_name}_orig":
            return cast(Tensor, hook.apply_mask(module))
        if isinstance(hook, WeightNorm) and attribute == f"{hook.name}_v":
            return cast(Tensor, hook.compute_weight(module))
        if isinstance(hook, SpectralNorm) and attribute == f"{hook.name}_orig":
            return hook.compute_weight(module, do_power_iteration=False)
    return None


def as_filters(weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a weight, filters first, as (filters, kernels, weights per kernel), float64 on the CPU.

    Always the CPU and always float64, so that a plan does not depend on the device or the precision of a run.
    """
    weight = weight.to("cpu", dtype)
    # A kernel may be computed from one number a filter, such as the width of a Gaussian.
    return weight.reshape(weight.shape[0], weight.shape[1] if weight.dim() > 1 else 1, -1)


def filters_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return all filters of a layer, see :func:`as_filters`."""
    return as_filters(weight_of(model, layer))


def check_weights(model: nn.Module) -> None:
    """Raise a ConfigurationError that names the layer if a model holds NaN or infinite parameters or norm statistics.

    A broken value shows in the scores of some criteria only, and in the end in the outputs of every smaller model.
    """
    for name, module in model.named_modules():
        # Other buffers may be infinite on purpose: masks of attention, for one.
        statistics = module._buffers if isinstance(module, _NormBase) else {}
        for key, tensor in [*module._parameters.items(), *statistics.items()]:
            if tensor is not None and tensor.is_floating_point() and not tensor.is_meta:
                what = "its weights" if key == "weight" else f"the values of its {key}"
                check_finite(tensor.detach(), name or type(module).__name__, what)


def check_finite(values: Tensor, layer: str, what: str) -> None:
    """Raise a ConfigurationError that names the layer if ``values`` hold a NaN or an infinity."""
    # One NaN or infinity shows in the sum. So may an overflow, which is no fault.
    bad = 0 if math.isfinite(values.sum()) else int((~torch.isfinite(values)).sum())
    if bad:
        raise ConfigurationError(
            f"{layer}: {what} hold {bad} NaN or infinite values of {values.numel()}; restore a sound checkpoint "
            f"before pruning"
        )
