"""`Structure`: the channel groups of a model, why some are frozen, and what every choice of widths costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter

import numpy as np

from infoprune.cost import Cost
from infoprune.errors import ConfigurationError, PlanError, nearest
from infoprune.structure.cost_model import CostModel
from infoprune.structure.explain import explain
from infoprune.structure.labels import Labels, LabelSpace, ranges
from infoprune.structure.layers import Layer, find_layers, layer_name
from infoprune.structure.notebook import html_table
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tracing.rule_context import Contraction, OpRecord
from infoprune.structure.tracing.tracer import Tracer


@dataclass(frozen=True)
class GroupSlot:
    """The part of one dimension of one parameter or buffer that belongs to a group.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: its dimension.
        index: (k,) positions along that dimension.
        unit: (k,) the group's unit that each position belongs to.
    """

    tensor: str
    dim: int
    index: Labels
    unit: Labels


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are chosen among themselves: every unit takes the same number of indices from the same slots.

    Attributes:
        name: the group's first filter layer.
        size: number of units; a unit's channels live and die together.
        slots: where the units lie.
        reason: why the group is frozen, or None if it can be pruned.
    """

    name: str
    size: int
    slots: tuple[GroupSlot, ...]
    reason: str | None = None

    @property
    def frozen(self) -> bool:
        """Return whether the group has to stay whole."""
        return self.reason is not None

    def __str__(self) -> str:
        state = f"frozen: {self.reason}" if self.frozen else "prunable"
        return f"{self.name}: {self.size} units in {len(self.slots)} slots, {state}"


@dataclass(frozen=True)
class AttributeSlot:
    """A number in a module that follows the width of some labels (found by rehearsal)."""

    path: str
    value: int
    labels: Labels


@dataclass(frozen=True)
class Passes:
    """The recorded forward passes that a rehearsal repeats; see ``TraceSession``."""

    on_shapes: bool
    passes: list[tuple[bool, Tracer]]
    zero_pass: Tracer | None


class Structure:
    """What can be pruned from one model, and at what gain. A pure value: it holds no reference to the model.

    Made by :func:`infoprune.trace`.
    """

    passes: Passes

    def __init__(
        self,
        space: LabelSpace,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Sequence[str],
        records: Sequence[OpRecord],
        contractions: Sequence[Contraction],
        other_contractions: Sequence[Contraction],
        batch: int,
        attributes: Sequence[AttributeSlot] = (),
        caches: Sequence[str] = (),
    ) -> None:
        self.shapes = dict(shapes)
        self.records = list(records)
        self.space = space
        self.attributes = tuple(attributes)
        self.caches = tuple(caches)
        self.component = space.components()
        self._slot_classes = space.slot_classes()
        self._representatives = space.representatives(self._slot_classes)
        self._slots = {(slot.tensor, slot.dim): slot for slot in space.slots}
        self._starts = np.array([slot.start for slot in space.slots], dtype=np.int64)
        self._parameters = list(parameters)
        self._contractions = list(contractions)
        self._batch = batch
        self.layers = tuple(find_layers(space, self.component, [*contractions, *other_contractions]))
        self.groups: tuple[ChannelGroup, ...] = ()
        self._last_keep_mask: tuple[PruningPlan, np.ndarray] | None = None
        self._group()

    def with_attributes(self, attributes: Sequence[AttributeSlot]) -> Structure:
        """The same channel groups, with other numbers that follow them."""
        other = copy(self)
        other.attributes = tuple(attributes)
        return other

    # -- groups -------------------------------------------------------------------------------------------------------

    def _group(self) -> None:
        """Sort the units into groups: those that lie in the same slots in the same number, for the same reason."""
        frozen, reasons = self._frozen_components()
        _, labels = self._representatives
        units = labels[(self.component[labels] == labels) & (frozen[labels] >= 0)]  # each by its smallest label
        signature = self.space.signatures(self.component, self._slot_classes)[units]
        signature ^= _random_bits(len(reasons) + 2)[frozen[units]]
        starts, lengths = _runs(signature)  # far fewer than units
        _, example, number = np.unique(signature[starts], return_index=True, return_inverse=True)
        order = np.argsort(number, kind="stable")
        sizes = np.bincount(number, weights=lengths).astype(np.int64)
        place = np.empty_like(units)  # of a unit in its group
        place[ranges(starts[order], lengths[order])] = ranges(np.zeros_like(sizes), sizes)
        group = np.repeat(number, lengths)

        slots = self._slots_of(units, group, place)
        reason_of = [reasons[r - 1] if r else None for r in frozen[units[starts[example]]].tolist()]
        group = self._finish_groups(slots, sizes.tolist(), reason_of)[group]
        self.group_of_root = np.full(self.space.size, -1, dtype=np.int64)
        self.group_of_root[units] = group
        # All units of all groups in one row; what is no channel stands behind the last.
        self._first_unit = np.cumsum([0, *(g.size for g in self.groups)])
        self._unit_of_root = np.full(self.space.size, self._first_unit[-1])
        self._unit_of_root[units] = np.where(group >= 0, self._first_unit[group] + place, self._first_unit[-1])

    def _slots_of(self, units: Labels, group: Labels, place: Labels) -> dict[int, list[GroupSlot]]:
        """Return where each group lies, given the units' smallest labels, their groups and their places in these."""
        unit_of_root = np.full(self.space.size, -1, dtype=np.int64)
        unit_of_root[units] = np.arange(len(units))
        slot, labels = self._representatives
        unit = unit_of_root[self.component[labels]]
        slot, labels, unit = slot[unit >= 0], labels[unit >= 0], unit[unit >= 0]
        # All labels that a group has in a slot stand together; mostly they do already.
        part = group[unit] * len(self.space.slots) + slot
        starts, lengths = _runs(part)
        order = np.argsort(part[starts], kind="stable")
        together = ranges(starts[order], lengths[order])
        index, place = (labels - self._starts[slot])[together], place[unit][together]
        parts, first_run = np.unique(part[starts[order]], return_index=True)
        begins = (np.cumsum(lengths[order]) - lengths[order])[first_run]
        likes: dict[int, list[int]] = {}
        for number, first in enumerate(self._slot_classes.tolist()):
            likes.setdefault(first, []).append(number)
        found = []
        for key, (begin, end) in zip(parts.tolist(), pairwise([*begins.tolist(), len(part)]), strict=True):
            of_group, first = divmod(key, len(self.space.slots))
            found += [(of_group, number, index[begin:end], place[begin:end]) for number in likes[first]]
        slots: dict[int, list[GroupSlot]] = {}
        for of_group, number, taken, of_unit in sorted(found, key=itemgetter(0, 1)):
            where = self.space.slots[number]
            slots.setdefault(of_group, []).append(GroupSlot(where.tensor, where.dim, taken, of_unit))
        return slots

    def _frozen_components(self) -> tuple[Labels, list[str]]:
        """For each component 0 if prunable, the number of its reason from 1, or -1 if it is no channel at all."""
        frozen = np.zeros(self.space.size, dtype=np.int64)
        silent = [f.labels for f in self.space.freezes if f.reason is None]
        spoken = [f for f in self.space.freezes if f.reason is not None]
        if silent:
            frozen[self.component[np.concatenate(silent)]] = -1
        reasons: list[str] = []
        numbers: dict[str, int] = {}
        for freeze in reversed(spoken):  # the first reason has the last word
            text = f"{freeze.reason} ({self.records[freeze.op]})" if freeze.op >= 0 else str(freeze.reason)
            if text not in numbers:
                reasons.append(text)
                numbers[text] = len(reasons)
            frozen[self.component[freeze.labels]] = numbers[text]
        return frozen, reasons

    def _finish_groups(
        self, slots: Mapping[int, list[GroupSlot]], sizes: Sequence[int], reasons: Sequence[str | None]
    ) -> Labels:
        """Name the groups after their layers and put them in forward order; the new number of each, -1 if dropped."""
        rank = {(layer.weight, layer.dim): i for i, layer in reversed(list(enumerate(self.layers)))}
        entries = []
        for number, members in slots.items():
            makers = [rank[key] for s in members if (key := (s.tensor, s.dim)) in rank]
            size = sizes[number]
            if not makers and size == 1:
                continue  # a dimension of one that nothing was ever united with is no channel
            reason = reasons[number]
            if reason is None and not makers:
                reason = "no convolution or linear layer makes these channels"
            if reason is None and size == 1:
                reason = "all its channels are bound together, or there is only one"
            label = self.layers[min(makers)].name if makers else members[0].tensor
            entries.append((min(makers, default=len(rank)), number, label, size, tuple(members), reason))
        entries.sort(key=lambda e: (e[0], e[5] is not None, e[1]))
        taken: dict[str, int] = {}
        groups = []
        new_number = np.full(len(slots), -1, dtype=np.int64)
        for position, (_, number, label, size, where, reason) in enumerate(entries):
            taken[label] = taken.get(label, 0) + 1
            name = label if taken[label] == 1 else f"{label}#{taken[label]}"
            groups.append(ChannelGroup(name, size, where, reason))
            new_number[number] = position
        self.groups = tuple(groups)
        return new_number

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that can lose units, in forward order."""
        return tuple(group for group in self.groups if not group.frozen)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    def group(self, name: str) -> ChannelGroup:
        """Look a group up.

        Raises:
            ConfigurationError: there is no group of that name.
        """
        if name not in self._number:
            raise ConfigurationError(f"no channel group is called {name!r}{nearest(name, self._number)}")
        return self.groups[self._number[name]]

    def producers(self, group: ChannelGroup) -> list[tuple[Layer, GroupSlot]]:
        """The layers whose filters belong to a group, in forward order."""
        slots = {(slot.tensor, slot.dim): slot for slot in group.slots}
        return [(layer, slots[key]) for layer in self.layers if (key := (layer.weight, layer.dim)) in slots]

    def explain(self, name: str) -> str:
        """Why the channels of a group, layer or tensor are coupled or frozen, as a chain of operators in words.

        Raises:
            ConfigurationError: nothing is called ``name``.
        """
        return explain(self, name)

    # -- plans --------------------------------------------------------------------------------------------------------

    def plan(self, removed: Mapping[str, Sequence[int] | Labels]) -> PruningPlan:
        """The plan that removes these units of these groups.

        Raises:
            ConfigurationError: an unknown group.
            PlanError: a frozen group, a unit out of range or repeated, a group emptied.
        """
        goes = np.zeros(self._first_unit[-1] + 1, dtype=bool)  # the last stands for labels without a unit
        for name, units in removed.items():
            group = self.group(name)
            chosen = np.sort(np.asarray(units if isinstance(units, np.ndarray) else list(units), dtype=np.int64))
            _check_units(group, chosen)
            goes[self._first_unit[self._number[name]] + chosen] = True
        return self._plan_of(goes)

    def _plan_of(self, goes: np.ndarray) -> PruningPlan:
        """The plan that removes these of all units in their row; its last entry, for what is no channel, is False."""
        slot, labels = self._representatives
        gone = goes[self._unit_of_root[self.component[labels]]]
        slot, labels = slot[gone], labels[gone]
        indices = labels - self._starts[slot]
        bounds = np.searchsorted(slot, np.arange(len(self.space.slots) + 1)).tolist()
        cuts: dict[str, dict[int, tuple[int, ...]]] = {}
        once: dict[bytes, tuple[int, ...]] = {}  # what one channel takes of many slots is written down once
        lost: dict[int, tuple[int, ...]] = {}
        for number, first in enumerate(self._slot_classes.tolist()):
            begin, end = bounds[first : first + 2]
            if begin == end:
                continue
            if first == number:
                own = indices[begin:end]
                lost[first] = once.get(own.tobytes()) or once.setdefault(own.tobytes(), tuple(own.tolist()))
            where = self.space.slots[number]
            cuts.setdefault(where.tensor, {})[where.dim] = lost[first]
        kept: dict[str, tuple[int, int]] = {}
        if self.attributes:
            keep = self._keep_mask_without(labels)
            kept = {a.path: (a.value, int(keep[a.labels].sum())) for a in self.attributes}
        attributes = {path: values for path, values in kept.items() if values[0] != values[1]}
        shapes = {tensor: self.shapes[tensor] for tensor in cuts}
        return PruningPlan(cuts, shapes, attributes, self.caches if cuts else ())

    def groups_cut(self, labels: Labels) -> Labels:
        """The numbers of the groups that labels belong to."""
        numbers = np.unique(self.group_of_root[self.component[labels]])
        return numbers[numbers >= 0]

    def labels_of(self, groups: Labels) -> Labels:
        """All labels of groups given by their numbers."""
        return np.flatnonzero(np.isin(self.group_of_root[self.component], groups))

    def whole_groups(self, labels: Labels) -> Labels:
        """These labels and all others of their groups."""
        return np.union1d(labels, self.labels_of(self.groups_cut(labels)))

    def part_of(self, plan: PruningPlan, groups: Labels) -> PruningPlan:
        """Return what a plan cuts from groups given by their numbers."""
        goes = np.zeros(self._first_unit[-1] + 1, dtype=bool)
        goes[self._unit_of_root[self.component[~self.keep_mask(plan)[:-1]]]] = True
        goes[:-1] &= np.isin(np.repeat(np.arange(len(self.groups)), np.diff(self._first_unit)), groups)
        goes[-1] = False
        return self._plan_of(goes)

    @property
    def cuts_alike(self) -> bool:
        """Whether no operator splits a dimension or takes channels by their places: all cuts meet the same code."""
        return not any(record.by_place or record.splits for record in self.records)

    # -- cost ---------------------------------------------------------------------------------------------------------

    def cost(self, widths: Mapping[str, int] | None = None) -> Cost:
        """Return what the model costs with these widths: arithmetic, no new trace.

        Args:
            widths: group name -> units that stay; groups not named keep all. None: the model as it is.

        Returns:
            Multiply-accumulates of convolutions, linear layers and attention for one example, and parameters.
        """
        if not widths:
            return self.cost_of(PruningPlan())
        macs, params = self._arithmetic
        kept = self._kept(widths)
        return Cost(round(macs(kept)), round(params(kept)))

    def cost_of_units(self, widths: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Return what one unit of each prunable group costs at these widths: group name -> (MACs, parameters)."""
        macs, params = (products.gradient(self._kept(widths)) for products in self._arithmetic)
        return {name: (float(macs[i]), float(params[i])) for name, i in self._prunable_position.items()}

    def _kept(self, widths: Mapping[str, int]) -> np.ndarray:
        kept: np.ndarray = self._prunable_sizes.copy()
        for name, width in widths.items():
            if name not in self._prunable_position:
                raise ConfigurationError(f"group {self.group(name).name!r} is frozen; its width cannot be {width}")
            kept[self._prunable_position[name]] = width
        return kept

    @cached_property
    def _prunable_position(self) -> dict[str, int]:
        return {group.name: i for i, group in enumerate(self.prunable)}

    @cached_property
    def _arithmetic(self) -> tuple[CostModel, CostModel]:
        macs = [(c.times / self._batch, [self._width(side) for side in c.sides]) for c in self._contractions]
        params = [
            (1.0, [self._width(self._slots[p, d].labels) for d in range(len(self.shapes[p]))]) for p in self._parameters
        ]
        return CostModel(macs), CostModel(params)

    def _width(self, axis: Labels) -> tuple[float, np.ndarray]:
        """A dimension's size as ``fixed + coefficients @ widths``."""
        group = self.group_of_root[self.component[axis[axis >= 0]]]
        counts = np.bincount(group[group >= 0], minlength=len(self.groups))[self._prunable_index]
        return float(len(axis) - counts.sum()), counts / self._prunable_sizes

    @cached_property
    def _prunable_index(self) -> Labels:
        return np.array([i for i, group in enumerate(self.groups) if not group.frozen], dtype=np.int64)

    @cached_property
    def _prunable_sizes(self) -> np.ndarray:
        return np.array([group.size for group in self.prunable], dtype=np.float64)

    def cost_of(self, plan: PruningPlan) -> Cost:
        """Return what the model costs after a plan."""
        params = sum(math.prod(self._shape_after(plan, name)) for name in self._parameters)
        return Cost(round(sum(self._layer_macs(plan).values())), params)

    def layer_costs(self, plan: PruningPlan | None = None) -> dict[str, Cost]:
        """Cost by layer, in forward order; after ``plan`` if one is given.

        Parameters are those of the layer's weight and bias. Products of activations (attention) count for the module
        that runs them.
        """
        plan = plan or PruningPlan()
        tensors: dict[str, dict[str, None]] = {}
        for c in self._contractions:
            tensors.setdefault(_layer_of(c), {})[c.kernel] = None
        result = {}
        for layer, macs in self._layer_macs(plan).items():
            own = {kernel for kernel in tensors[layer] if kernel} | ({f"{layer}.bias"} & self.shapes.keys())
            params = sum(math.prod(self._shape_after(plan, name)) for name in own & set(self._parameters))
            result[layer] = Cost(round(macs), params)
        return result

    def _layer_macs(self, plan: PruningPlan) -> dict[str, float]:
        """Multiply-accumulates by layer, over all calls, for one example."""
        keep = self.keep_mask(plan)
        macs: dict[str, float] = {}
        for c in self._contractions:
            count = c.times / self._batch
            for side in c.sides:
                count *= int(keep[side].sum())
            macs[_layer_of(c)] = macs.get(_layer_of(c), 0.0) + count
        return macs

    def keep_mask(self, plan: PruningPlan) -> np.ndarray:
        """For every label whether it survives a plan; ``keep[OUTSIDE]`` is True.

        Raises:
            PlanError: the plan was made for another model.
        """
        if (
            self._last_keep_mask is not None and self._last_keep_mask[0] is plan
        ):  # a call asks for its plan again and again
            return self._last_keep_mask[1]
        check_belongs(plan, self.shapes)
        gone = [
            self._slots[tensor, dim].start + plan.indices(tensor, dim)
            for tensor, dims in plan.removed.items()
            for dim in dims
        ]
        keep = self._keep_mask_without(np.concatenate(gone) if gone else np.empty(0, dtype=np.int64))
        self._last_keep_mask = (plan, keep)
        return keep

    def _keep_mask_without(self, gone: Labels) -> np.ndarray:
        """For every label whether it stays when these go with their units; a last one stands for ``OUTSIDE``."""
        dead = np.zeros(self.space.size, dtype=bool)
        dead[self.component[gone]] = True
        return np.append(~dead[self.component], True)

    def _shape_after(self, plan: PruningPlan, tensor: str) -> tuple[int, ...]:
        return plan.shape_after(tensor) if tensor in plan.shapes else self.shapes[tensor]

    def __repr__(self) -> str:
        cost = self.cost()
        return (
            f"Structure({len(self.prunable)} prunable and {len(self.groups) - len(self.prunable)} frozen groups, "
            f"{len(self.layers)} layers, {cost.macs:,} MACs, {cost.params:,} parameters)"
        )

    def _repr_html_(self) -> str:
        rows = [[group.name, str(group.size), group.reason or "prunable"] for group in self.groups]
        return html_table(repr(self), ["channel group", "units", "state"], rows)


def _layer_of(contraction: Contraction) -> str:
    """The name that a contraction's cost goes by."""
    return layer_name(contraction.kernel) if contraction.kernel else contraction.module or "forward"


def _runs(values: np.ndarray) -> tuple[Labels, Labels]:
    """Return where runs of equal values start, and how long they are."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return starts, np.diff(starts, append=len(values))


def _random_bits(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, size=count, dtype=np.uint64)


def _check_units(group: ChannelGroup, units: np.ndarray) -> None:
    if group.frozen and len(units):
        raise PlanError(f"group {group.name!r} is frozen: {group.reason}")
    if len(units) and (units[0] < 0 or units[-1] >= group.size):
        bad = units[0] if units[0] < 0 else units[-1]
        raise PlanError(f"group {group.name!r} has units 0 to {group.size - 1}, the plan removes unit {bad}")
    if (units[1:] == units[:-1]).any():
        raise PlanError(f"the plan removes a unit of group {group.name!r} twice")
    if len(units) == group.size:
        raise PlanError(f"the plan removes all {group.size} units of group {group.name!r}; at least one must stay")
