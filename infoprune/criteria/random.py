"""Random scores: the control that every criterion must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.criteria.criterion import CRITERIA, LayerCriterion
from infoprune.criteria.filters import scored_layers
from infoprune.registry import check_count

if TYPE_CHECKING:
    from infoprune.structure import Structure


@CRITERIA.register("random")
@dataclass(kw_only=True)
class Random(LayerCriterion):
    """Draw uniform random scores.

    Each layer draws from its own generator, seeded by ``seed`` and the layer's name: the scores depend neither on the
    order of calls, nor on the process, nor on torch's global generator, which is left alone.

    Args:
        seed: Seed of the scores.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.label, "seed", self.seed, 0)

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Return layer name -> (filters,) draws from [0, 1)."""
        return {
            layer.name: self._draw(layer.name, model.get_parameter(layer.weight).shape[layer.dim])
            for layer in scored_layers(structure)
        }

    def _draw(self, name: str, count: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(count, generator=generator, dtype=torch.float64)
