"""Criteria that score the feature maps of single images and average over images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.criteria.activations.tap import per_filter, stream_activations
from infoprune.criteria.checks import as_scores, check_finite
from infoprune.criteria.criterion import LayerCriterion
from infoprune.criteria.filters import scored_layers
from infoprune.distributed import mean_over_processes
from infoprune.registry import check_count

if TYPE_CHECKING:
    from infoprune.structure import Structure


@dataclass(kw_only=True)
class FeatureMapCriterion(LayerCriterion):
    """Average a score of feature maps over calibration images.

    All layers are observed in one pass over the images, streamed: memory is bounded by one batch. On several
    processes each looks at its own images and the sums are added up.

    Args:
        images: Number of calibration images over all processes; all of the data if it holds fewer.

    Raises:
        DataError: the data holds no image.
        ConfigurationError: a layer whose activations cannot be observed, or that are not finite.
    """

    images: int = 640

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.label, "images", self.images, 1)

    @abstractmethod
    def map_scores(self, maps: Tensor) -> Tensor:
        """Score the maps of one batch.

        Args:
            maps: (B, C, H, W) activations of one layer.

        Returns:
            (B, C) scores.
        """

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Return layer name -> (filters,) mean over images."""
        layers = scored_layers(structure)
        sizes = {layer.name: model.get_parameter(layer.weight).shape[layer.dim] for layer in layers}
        sums = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        counts = dict.fromkeys(sums, 0)

        def add(name: str, maps: Tensor) -> None:
            check_finite(maps, name, "its activations")
            with self.named_in_errors(f"on the feature maps of layer {name!r}"):
                found = self.map_scores(maps)
            scores = as_scores(self.label, found, tuple(maps.shape[:2]), f"the feature maps of layer {name!r}")
            sums[name] += per_filter(scores.sum(dim=0), sizes[name])
            counts[name] += len(maps)

        stream_activations(model, layers, data or (), self.images, add, self.label)
        return {name: mean_over_processes(sums[name], counts[name]) for name in sums}
