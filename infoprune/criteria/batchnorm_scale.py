"""Score channels by the scale that batch norm gives them.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. They train with
an L1 penalty on the scales first; without it the scales are less informative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infoprune.criteria.criterion import CRITERIA, LayerCriterion
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, GroupSlot, Structure


@CRITERIA.register("batchnorm_scale")
@dataclass(kw_only=True)
class BatchNormScale(LayerCriterion):
    """Absolute scale (gamma) of the batch norms that normalise a group's channels. Data-free.

    The batch norms are those whose scale belongs to the group, whatever their names; if there are several
    (coupled layers, or one per reader in a densely connected net), they are combined like coupled layers.

    Raises:
        ConfigurationError: a prunable group has no batch norm with a scale.
    """

    def members(self, model: nn.Module, structure: Structure, group: ChannelGroup) -> list[tuple[str, GroupSlot]]:
        """Return the batch norms of a group.

        Args:
            model: the model.
            structure: its channel groups.
            group: one of them.

        Returns:
            Name of each batch norm, with the slot of its weight.
        """
        found = []
        for slot in group.slots:
            caller, _, leaf = slot.tensor.rpartition(".")
            if leaf == "weight" and isinstance(model.get_submodule(caller), _BatchNorm):
                found.append((caller, slot))
        if not found:
            raise ConfigurationError(
                f"{self.label}: no batch norm with a scale belongs to group {group.name}; freeze the group or choose "
                "a criterion that reads the filters, such as 'l1'"
            )
        return found

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Return batch norm name -> (channels,) absolute scales."""
        scores = {}
        for group in structure.prunable:
            for name, slot in self.members(model, structure, group):
                scale = model.get_parameter(slot.tensor).detach()
                scores[name] = scale.abs()
        return scores
