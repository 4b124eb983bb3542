"""`ModelCosts`: what a model costs at any widths, and after any plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from infoprune.cost import Cost
from infoprune.structure.channel_groups import Grouping
from infoprune.structure.cost_model import CostModel
from infoprune.structure.labels import Labels
from infoprune.structure.layers import layer_of
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tracing.records import Contraction


class ModelCosts:
    """Count MACs and parameters from the labels of the contractions that ran, with no new trace.

    Args:
        grouping: the channel groups.
        parameters: for each parameter the labels of its dimensions.
        contractions: the convolutions and products that ran.
        measure: runs the model to count what the trace could not; takes the place of ``contractions`` at the first use.
        batch: number of examples that the contractions were counted for.
    """

    def __init__(
        self,
        grouping: Grouping,
        parameters: Mapping[str, Sequence[Labels]],
        contractions: Sequence[Contraction],
        measure: Callable[[], Sequence[Contraction]] | None,
        batch: int,
    ) -> None:
        self._grouping = grouping
        self._parameters = parameters
        self._traced = contractions
        self._measure = measure
        self._batch = batch
        prunable = [(i, group) for i, group in enumerate(grouping.groups) if not group.frozen]
        self._position = {group.name: place for place, (_, group) in enumerate(prunable)}
        self._index = np.array([i for i, _ in prunable], dtype=np.int64)
        self._sizes = np.array([group.size for _, group in prunable], dtype=np.float64)

    def at(self, widths: Mapping[str, int]) -> Cost:
        """Return what the model costs with these widths.

        Args:
            widths: name of a prunable group -> units that stay; groups not named keep all.
        """
        macs, params = self._arithmetic
        kept = self._kept(widths)
        return Cost(round(macs(kept)), round(params(kept)))

    def of_units(self, widths: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Return what one unit of each prunable group costs at the given widths.

        Args:
            widths: name of a prunable group -> units that stay; groups not named keep all.

        Returns:
            Group name -> (MACs for one example, parameters).
        """
        macs, params = (products.gradient(self._kept(widths)) for products in self._arithmetic)
        return {name: (float(macs[i]), float(params[i])) for name, i in self._position.items()}

    def after(self, plan: PruningPlan, keep: np.ndarray) -> Cost:
        """Return what the model costs after a plan.

        Args:
            plan: the plan.
            keep: its keep mask.
        """
        params = sum(math.prod(self._shape_after(plan, name)) for name in self._parameters)
        return Cost(round(sum(self._layer_macs(keep).values())), params)

    def by_layer(self, plan: PruningPlan, keep: np.ndarray) -> dict[str, Cost]:
        """Return the cost of each layer after a plan, in forward order.

        Args:
            plan: the plan.
            keep: its keep mask.
        """
        tensors: dict[str, dict[str, None]] = {}
        for c in self._contractions:
            tensors.setdefault(layer_of(c), {})[c.kernel] = None
        result = {}
        for layer, macs in self._layer_macs(keep).items():
            own = {kernel for kernel in tensors[layer] if kernel} | {f"{layer}.bias"}
            params = sum(math.prod(self._shape_after(plan, name)) for name in own & self._parameters.keys())
            result[layer] = Cost(round(macs), params)
        return result

    @cached_property
    def _contractions(self) -> Sequence[Contraction]:
        if self._measure is None:
            return self._traced
        measure, self._measure = self._measure, None  # which holds the model
        return measure()

    def _kept(self, widths: Mapping[str, int]) -> np.ndarray:
        kept: np.ndarray = self._sizes.copy()
        for name, width in widths.items():
            kept[self._position[name]] = width
        return kept

    @cached_property
    def _arithmetic(self) -> tuple[CostModel, CostModel]:
        macs = [(c.times / self._batch, [self._width(side) for side in c.sides]) for c in self._contractions]
        params = [(1.0, [self._width(axis) for axis in axes]) for axes in self._parameters.values()]
        return CostModel(macs), CostModel(params)

    def _width(self, axis: Labels) -> tuple[float, np.ndarray]:
        """Return a dimension's size as ``fixed + coefficients @ widths``."""
        group = self._grouping.group_of_root[self._grouping.component[axis[axis >= 0]]]
        counts = np.bincount(group[group >= 0], minlength=len(self._grouping.groups))[self._index]
        return float(len(axis) - counts.sum()), counts / self._sizes

    def _layer_macs(self, keep: np.ndarray) -> dict[str, float]:
        """Return multiply-accumulates by layer, over all calls, for one example."""
        macs: dict[str, float] = {}
        for c in self._contractions:
            count = c.times / self._batch
            for side in c.sides:
                count *= int(np.count_nonzero(keep[side]))
            macs[layer_of(c)] = macs.get(layer_of(c), 0.0) + count
        return macs

    def _shape_after(self, plan: PruningPlan, tensor: str) -> tuple[int, ...]:
        return plan.shape_after(tensor) if tensor in plan.shapes else tuple(map(len, self._parameters[tensor]))
