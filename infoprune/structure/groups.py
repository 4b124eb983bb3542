"""`Structure`: the channel groups of a model, why some are frozen, and what every choice of widths costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from infoprune.cost import Cost
from infoprune.errors import ConfigurationError, nearest
from infoprune.structure.channel_groups import ChannelGroup, Grouping, GroupSlot
from infoprune.structure.explain import explain
from infoprune.structure.labels import Labels, LabelSpace
from infoprune.structure.layers import Layer, find_layers
from infoprune.structure.model_costs import ModelCosts
from infoprune.structure.notebook import html_table
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tracing.records import Contraction

if TYPE_CHECKING:
    from infoprune.structure.tracing.passes import Passes


@dataclass(frozen=True)
class AttributeSlot:
    """A number in a module that follows the width of some labels (found by dry run)."""

    path: str
    value: int
    labels: Labels


class Structure:
    """What can be pruned from one model, and at what gain. Made by :func:`infoprune.trace`.

    A pure value: it holds no reference to the model, except until its cost is known where that takes a run: see `cost`.
    """

    def __init__(
        self,
        space: LabelSpace,
        passes: Passes,
        batch: int,
        attributes: Sequence[AttributeSlot] = (),
        caches: Sequence[str] = (),
        measure: Callable[[], Sequence[Contraction]] | None = None,
    ) -> None:
        self.shapes = {name: tuple(map(len, axes)) for name, axes in space.labels.items()}
        self.space = space
        self.passes = passes  # which a dry run repeats
        self.records = passes.records
        self.attributes = tuple(attributes)
        self.caches = tuple(caches)
        self.component = space.components()
        # Train mode's own layers (auxiliary heads) are not counted, but make channels.
        products = [product for _, tracer in passes.traced for product in tracer.contractions]
        self.layers = tuple(find_layers(space, self.component, products))
        self._grouping = Grouping(space, self.component, self.records, self.layers)
        self.groups = self._grouping.groups
        self._costs = ModelCosts(
            self._grouping,
            {name: axes for name, axes in space.labels.items() if name in space.parameters},
            passes.counted,
            measure,
            batch,
        )
        self._last_keep_mask: tuple[PruningPlan, np.ndarray] | None = None

    def with_attributes(self, attributes: Sequence[AttributeSlot]) -> Structure:
        """Return the same channel groups with other attributes that follow their widths.

        Args:
            attributes: all attributes that the groups are to have.
        """
        other = copy(self)
        other.attributes = tuple(attributes)
        return other

    # -- groups -------------------------------------------------------------------------------------------------------

    @property
    def group_of_root(self) -> Labels:
        """Return for the smallest label of each unit the number of its group, else -1."""
        return self._grouping.group_of_root

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Return the groups that can lose units, in forward order."""
        return tuple(group for group in self.groups if not group.frozen)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    def group(self, name: str) -> ChannelGroup:
        """Return the channel group of a name.

        Args:
            name: name of a channel group, prunable or frozen.

        Raises:
            ConfigurationError: there is no group of that name.
        """
        if name not in self._number:
            raise ConfigurationError(f"no channel group is called {name!r}{nearest(name, self._number)}")
        return self.groups[self._number[name]]

    def producers(self, group: ChannelGroup) -> list[tuple[Layer, GroupSlot]]:
        """Return the layers whose filters belong to a group, in forward order.

        Args:
            group: a group of this structure.

        Returns:
            Each layer with the slot of its weight that holds the group.
        """
        slots = {(slot.tensor, slot.dim): slot for slot in group.slots}
        return [(layer, slots[key]) for layer in self.layers if (key := (layer.weight, layer.dim)) in slots]

    def explain(self, name: str) -> str:
        """Say why the channels of a group, layer or tensor are coupled or frozen, as a chain of operators in words.

        Args:
            name: name of a group, a layer, or a parameter or buffer.

        Raises:
            ConfigurationError: nothing is called ``name``.
        """
        return explain(self, name)

    @cached_property
    def stays(self) -> np.ndarray:
        """Return for every label whether no plan removes it; the last entry, for `OUTSIDE`, is True."""
        frozen = np.array([*(group.frozen for group in self.groups), True])
        return np.append(frozen[self.group_of_root[self.component]], True)

    # -- plans --------------------------------------------------------------------------------------------------------

    def plan(self, removed: Mapping[str, Sequence[int] | Labels]) -> PruningPlan:
        """Return the plan that removes units of groups.

        Args:
            removed: group name -> (n,) units that go, in any order; groups not named stay whole.

        Raises:
            ConfigurationError: an unknown group.
            PlanError: a frozen group, a unit out of range or repeated, a group emptied.
        """
        goes = np.zeros(self._grouping.first_unit[-1] + 1, dtype=bool)  # the last stands for labels without a unit
        for name, units in removed.items():
            group = self.group(name)
            chosen = np.sort(np.asarray(units if isinstance(units, np.ndarray) else list(units), dtype=np.int64))
            group.check_units(chosen)
            goes[self._grouping.first_unit[self._number[name]] + chosen] = True
        return self._plan_of(goes)

    def _plan_of(self, goes: np.ndarray) -> PruningPlan:
        """Return the plan that removes units, given as a mask over all of them and one entry more, which is False."""
        cuts, labels = self._grouping.slots_of(goes)
        kept: dict[str, tuple[int, int]] = {}
        if self.attributes:
            keep = self._keep_mask_without(labels)
            kept = {a.path: (a.value, int(keep[a.labels].sum())) for a in self.attributes}
        attributes = {path: values for path, values in kept.items() if values[0] != values[1]}
        shapes = {tensor: self.shapes[tensor] for tensor in cuts}
        return PruningPlan(cuts, shapes, attributes, self.caches if cuts else ())

    def groups_cut(self, labels: Labels) -> Labels:
        """Return which groups labels belong to.

        Args:
            labels: (n,) labels.

        Returns:
            (m,) places in ``self.groups``, sorted, each once.
        """
        numbers = np.unique(self.group_of_root[self.component[labels]])
        return numbers[numbers >= 0]

    def labels_of(self, groups: Labels) -> Labels:
        """Return all labels of groups.

        Args:
            groups: (n,) places in ``self.groups``.

        Returns:
            (m,) labels, sorted.
        """
        return np.flatnonzero(np.isin(self.group_of_root[self.component], groups))

    def whole_groups(self, labels: Labels) -> Labels:
        """Return labels with all others of their groups: (m,), sorted.

        Args:
            labels: (n,) labels.
        """
        return np.union1d(labels, self.labels_of(self.groups_cut(labels)))

    def part_of(self, plan: PruningPlan, groups: Labels) -> PruningPlan:
        """Return the part of a plan that cuts the given groups.

        Args:
            plan: a plan of this structure.
            groups: (n,) numbers of groups, in the order of ``self.groups``.

        Returns:
            A plan that removes nothing else.
        """
        goes = np.zeros(self._grouping.first_unit[-1] + 1, dtype=bool)
        goes[self._grouping.unit_of_root[self.component[~self.keep_mask(plan)[:-1]]]] = True
        goes[:-1] &= np.isin(np.repeat(np.arange(len(self.groups)), np.diff(self._grouping.first_unit)), groups)
        goes[-1] = False
        return self._plan_of(goes)

    @property
    def cuts_alike(self) -> bool:
        """Return whether the code treats all cuts alike: no operator splits dimensions or takes channels by place."""
        return not any(record.by_place or record.splits for record in self.records)

    # -- cost ---------------------------------------------------------------------------------------------------------

    def cost(self, widths: Mapping[str, int] | None = None) -> Cost:
        """Return what the model costs with these widths: arithmetic, no new trace.

        Values may decide how often a layer runs: the head of a two-stage detector runs for each box of the first
        stage. If they took too long for the trace, the first call runs the model on the example inputs, in eval mode;
        all costs, also after cuts, are for as many boxes as it finds there.

        Args:
            widths: group name -> units that stay; groups not named keep all. None: the model as it is.

        Returns:
            Multiply-accumulates of convolutions, linear layers and attention for one example, and parameters.
        """
        if not widths:
            return self._whole_cost
        self._check_prunable(widths)
        return self._costs.at(widths)

    @cached_property
    def _whole_cost(self) -> Cost:
        return self.cost_of(PruningPlan())

    def cost_of_units(self, widths: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Return what one unit of each prunable group costs at the given widths.

        Args:
            widths: group name -> units that stay; groups not named keep all.

        Returns:
            Group name -> (MACs for one example, parameters).
        """
        self._check_prunable(widths)
        return self._costs.of_units(widths)

    def _check_prunable(self, widths: Mapping[str, int]) -> None:
        for name, width in widths.items():
            group = self.group(name)
            if group.frozen:
                raise ConfigurationError(f"group {name!r} is frozen; its width cannot be {width}")
            if not 0 <= width <= group.size:
                raise ConfigurationError(f"group {name!r} has {group.size} units; its width cannot be {width}")

    def cost_of(self, plan: PruningPlan) -> Cost:
        """Return what the model costs after a plan.

        Args:
            plan: a plan of this structure.
        """
        return self._costs.after(plan, self.keep_mask(plan))

    def layer_costs(self, plan: PruningPlan | None = None) -> dict[str, Cost]:
        """Return the cost of each layer after a plan, in forward order.

        Parameters are those of the layer's weight and bias. Products of activations (attention) count for the module
        that runs them.

        Args:
            plan: a plan of this structure; None: the model as it is.
        """
        plan = plan or PruningPlan()
        return self._costs.by_layer(plan, self.keep_mask(plan))

    def keep_mask(self, plan: PruningPlan) -> np.ndarray:
        """Return for every label whether it survives a plan; the last entry, for `OUTSIDE`, is True.

        Args:
            plan: a plan of this structure.

        Returns:
            (labels + 1,) booleans.

        Raises:
            PlanError: the plan was made for another model.
        """
        last = self._last_keep_mask
        if last is not None and last[0] is plan:  # callers ask for one plan repeatedly
            return last[1]
        check_belongs(plan, self.shapes)
        gone = [
            self.space.labels[tensor][dim][plan.indices(tensor, dim)]
            for tensor, dims in plan.removed.items()
            for dim in dims
        ]
        keep = self._keep_mask_without(np.concatenate(gone) if gone else np.empty(0, dtype=np.int64))
        self._last_keep_mask = (plan, keep)
        return keep

    def _keep_mask_without(self, gone: Labels) -> np.ndarray:
        """Return a keep mask over all labels without the given ones and their units; the last entry is `OUTSIDE`."""
        dead = np.zeros(self.space.size, dtype=bool)
        dead[self.component[gone]] = True
        return np.append(~dead[self.component], True)

    def __repr__(self) -> str:
        cost = self.cost()
        return (
            f"Structure({len(self.prunable)} prunable and {len(self.groups) - len(self.prunable)} frozen groups, "
            f"{len(self.layers)} layers, {cost.macs:,} MACs, {cost.params:,} parameters)"
        )

    def _repr_html_(self) -> str:
        rows = [[group.name, str(group.size), group.reason or "prunable"] for group in self.groups]
        return html_table(repr(self), ["channel group", "units", "state"], rows)
