"""Build a record's rows from a traced model and a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from infoprune.allocation.curves import LossCurves, Round
from infoprune.cost import Cost
from infoprune.report.record import EventRecord, LayerRow
from infoprune.structure import ChannelGroup, PruningPlan, Structure


def layer_rows(structure: Structure, plan: PruningPlan) -> list[LayerRow]:
    """Return every convolution and linear layer before and after a plan, in forward order.

    Args:
        structure: of the model before.
        plan: what is removed; an empty plan gives rows that stay the same.
    """
    before, after = structure.layer_costs(), structure.layer_costs(plan)
    groups = {layer.name: group.name for group in reversed(structure.groups) for layer, _ in structure.producers(group)}
    rows = []
    for layer in structure.layers:
        shape = structure.shapes[layer.weight]
        left = plan.shape_after(layer.weight) if layer.weight in plan.shapes else shape
        was, now = before.get(layer.name, Cost(0, 0)), after.get(layer.name, Cost(0, 0))
        rows.append(
            LayerRow(
                name=layer.name,
                group=groups.get(layer.name, layer.name),
                kind=layer.kind,
                channels_before=shape[layer.dim],
                channels_after=left[layer.dim],
                params_before=was.params,
                params_after=now.params,
                macs_before=was.macs,
                macs_after=now.macs,
            )
        )
    return rows


def whole_run(events: Sequence[EventRecord]) -> list[LayerRow]:
    """Return the rows of a whole run: each layer before the first event and after the last.

    Args:
        events: the events, the first one first.
    """
    if not events:
        return []
    last = {row.name: row for row in events[-1].layers}
    return [
        replace(
            row,
            channels_after=last[row.name].channels_after,
            params_after=last[row.name].params_after,
            macs_after=last[row.name].macs_after,
        )
        for row in events[0].layers
    ]


def kept_units(group: ChannelGroup, plan: PruningPlan) -> list[int]:
    """Return the units of a group that a plan leaves.

    Args:
        group: a channel group.
        plan: the plan.
    """
    gone: set[int] = set()
    for slot in group.slots:
        cut = set(plan.removed.get(slot.tensor, {}).get(slot.dim, ()))
        gone.update(int(unit) for index, unit in zip(slot.index, slot.unit, strict=True) if int(index) in cut)
    return [unit for unit in range(group.size) if unit not in gone]


def event_record(
    index: int,
    epoch: int,
    global_step: int,
    criterion: str,
    structure: Structure,
    plan: PruningPlan,
    scores: Mapping[str, Tensor],
    metrics: Mapping[str, float | None] | None = None,
    curves: LossCurves | None = None,
) -> EventRecord:
    """Describe one pruning event.

    Args:
        index: 0 for the first event of the run.
        epoch: epoch at whose start it happened.
        global_step: optimizer steps taken before it.
        criterion: name of the criterion.
        structure: of the model before the event.
        plan: what went.
        scores: channel group -> (units,) scores.
        metrics: last validation metrics before the event.
        curves: what cutting each group costs, if the allocation measured it.
    """
    cost = structure.cost_of(plan)
    return EventRecord(
        index=index,
        epoch=epoch,
        global_step=global_step,
        criterion=criterion,
        macs=cost.macs,
        params=cost.params,
        layers=layer_rows(structure, plan),
        scores={name: [float(value) for value in values] for name, values in scores.items()},
        kept={name: kept_units(structure.group(name), plan) for name in scores},
        metrics_before=dict(metrics or {}),
        curves={name: _points(curves.rounds[0], name) for name in curves.rounds[0].curves} if curves else {},
    )


def _points(measured: Round, name: str) -> dict[str, float]:
    """Return the points of a loss curve, from all units down."""
    points = {measured.widths[name]: 0.0} | {width: measured.added(name, width) for width in measured.curves[name]}
    return {str(width): points[width] for width in sorted(points, reverse=True)}


@dataclass
class UnprunedStats:
    """Cost and channel groups of the model before the first pruning event.

    Attributes:
        macs: multiply-accumulates per example.
        params: parameters.
        sizes: units of each prunable channel group.
        frozen: reason of each frozen channel group.
        layers: every layer; before and after are the same.
    """

    macs: int
    params: int
    sizes: dict[str, int]
    frozen: dict[str, str]
    layers: list[LayerRow] = field(default_factory=list)

    @property
    def cost(self) -> Cost:
        """Return MACs and parameters."""
        return Cost(self.macs, self.params)

    @classmethod
    def of(cls, structure: Structure) -> UnprunedStats:
        """Return the stats of a traced model.

        Args:
            structure: the traced model.
        """
        cost = structure.cost()
        return cls(
            cost.macs,
            cost.params,
            {group.name: group.size for group in structure.prunable},
            {group.name: group.reason for group in structure.groups if group.reason is not None},
            layer_rows(structure, PruningPlan()),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UnprunedStats:
        """Return the stats that `to_dict` wrote.

        Args:
            data: from a checkpoint.
        """
        return cls(**{**data, "layers": [LayerRow(**row) for row in data["layers"]]})

    def to_dict(self) -> dict[str, Any]:
        """Return the stats as plain data, for a checkpoint."""
        return dataclasses.asdict(self)
