"""The model before the first pruning event, as plain data that travels in checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infoprune.cost import Cost
from infoprune.report.collect import layer_rows
from infoprune.report.record import EventRecord, LayerRow
from infoprune.structure import PruningPlan, Structure


@dataclass
class Original:
    """What later events and the report need to know of the unpruned model.

    Attributes:
        macs: multiply-accumulates per example.
        params: parameters.
        sizes: prunable channel group -> units.
        frozen: frozen channel group -> why.
        layers: every layer; before and after are the same.
    """

    macs: int
    params: int
    sizes: dict[str, int]
    frozen: dict[str, str]
    layers: list[LayerRow] = field(default_factory=list)

    @property
    def cost(self) -> Cost:
        """MACs and parameters."""
        return Cost(self.macs, self.params)

    @classmethod
    def of(cls, structure: Structure) -> Original:
        """Describe a traced model."""
        cost = structure.cost()
        return cls(
            cost.macs,
            cost.params,
            {group.name: group.size for group in structure.prunable},
            {group.name: group.reason for group in structure.groups if group.reason is not None},
            layer_rows(structure, PruningPlan()),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Original:
        """Read what ``dataclasses.asdict`` made of it."""
        return cls(**{**data, "layers": [LayerRow(**row) for row in data["layers"]]})


def event_from_dict(data: Mapping[str, Any]) -> EventRecord:
    """Read what ``dataclasses.asdict`` made of an event."""
    return EventRecord(**{**data, "layers": [LayerRow(**row) for row in data["layers"]]})


def as_primitives(value: Original | EventRecord) -> dict[str, Any]:
    """Turn a record into what a checkpoint may hold."""
    return dataclasses.asdict(value)
