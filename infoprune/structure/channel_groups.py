"""Sort coupled channels into groups whose units lie in the same slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np

from infoprune.errors import PlanError
from infoprune.structure.labels import Labels, LabelSpace, ranges
from infoprune.structure.layers import Layer
from infoprune.structure.tracing.records import OpRecord


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

    def check_units(self, units: np.ndarray) -> None:
        """Refuse to remove units that do not exist, are frozen, or would leave nothing of the group.

        Args:
            units: (n,) the units to remove, sorted.

        Raises:
            PlanError: names the group and what is wrong.
        """
        if self.frozen and len(units):
            raise PlanError(f"group {self.name!r} is frozen: {self.reason}")
        if len(units) and (units[0] < 0 or units[-1] >= self.size):
            bad = units[0] if units[0] < 0 else units[-1]
            raise PlanError(f"group {self.name!r} has units 0 to {self.size - 1}, the plan removes unit {bad}")
        if (units[1:] == units[:-1]).any():
            raise PlanError(f"the plan removes a unit of group {self.name!r} twice")
        if len(units) == self.size:
            raise PlanError(f"the plan removes all {self.size} units of group {self.name!r}; at least one must stay")

    def __str__(self) -> str:
        state = f"frozen: {self.reason}" if self.frozen else "prunable"
        return f"{self.name}: {self.size} units in {len(self.slots)} slots, {state}"


class Grouping:
    """Sort units into channel groups: those that lie in the same slots in the same number, for the same reason.

    Args:
        space: the labels of a model.
        component: for each label the smallest of its component.
        records: the operators that ran.
        layers: the layers, in forward order.

    Attributes:
        component: as given.
        groups: the channel groups, in forward order.
        group_of_root: for the smallest label of each unit the number of its group, else -1.
        first_unit: the number of each group's first unit, all units of all groups standing in one row.
        unit_of_root: for the smallest label of each unit its place in that row; for labels that are no channels the
            place behind the last.
        slot_classes: for each slot the first one of its kind.
        representatives: labels of the first slot of each kind, with their slots; they stand for those of the others.
        starts: for each slot its first label.
    """

    def __init__(self, space: LabelSpace, component: Labels, records: Sequence[OpRecord], layers: Sequence[Layer]):
        self._space = space
        self.component = component
        self._records = records
        self._layers = layers
        self.slot_classes = space.slot_classes()
        self.representatives = space.representatives(self.slot_classes)
        self.starts = np.array([slot.start for slot in space.slots], dtype=np.int64)
        self.groups: tuple[ChannelGroup, ...] = ()
        self._group()

    def slots_of(self, goes: np.ndarray) -> tuple[dict[str, dict[int, tuple[int, ...]]], Labels]:
        """Return what units take of each parameter and buffer.

        Args:
            goes: mask over the row of all units and one entry more, for labels without a unit: False.

        Returns:
            Tensor -> dimension -> indices, sorted; and the labels that go, of the first slot of each kind.
        """
        slot, labels = self.representatives
        gone = goes[self.unit_of_root[self.component[labels]]]
        slot, labels = slot[gone], labels[gone]
        indices = labels - self.starts[slot]
        bounds = np.searchsorted(slot, np.arange(len(self._space.slots) + 1)).tolist()
        cuts: dict[str, dict[int, tuple[int, ...]]] = {}
        once: dict[bytes, tuple[int, ...]] = {}  # indices that many slots lose are one tuple
        lost: dict[int, tuple[int, ...]] = {}
        for number, first in enumerate(self.slot_classes.tolist()):
            begin, end = bounds[first : first + 2]
            if begin == end:
                continue
            if first == number:
                own = indices[begin:end]
                lost[first] = once.get(own.tobytes()) or once.setdefault(own.tobytes(), tuple(own.tolist()))
            where = self._space.slots[number]
            cuts.setdefault(where.tensor, {})[where.dim] = lost[first]
        return cuts, labels

    def _group(self) -> None:
        """Sort the units into groups: those that lie in the same slots in the same number, for the same reason."""
        frozen, reasons = self._frozen_components()
        _, labels = self.representatives
        units = labels[(self.component[labels] == labels) & (frozen[labels] >= 0)]  # each by its smallest label
        signature = self._space.signatures(self.component, self.slot_classes)[units]
        signature ^= _random_bits(len(reasons) + 2)[frozen[units]]
        starts, lengths = _runs(signature)  # far fewer than units
        _, example, number = np.unique(signature[starts], return_index=True, return_inverse=True)
        order = np.argsort(number, kind="stable")
        sizes = np.bincount(number, weights=lengths).astype(np.int64)
        place = np.empty_like(units)  # of a unit in its group
        place[ranges(starts[order], lengths[order])] = ranges(np.zeros_like(sizes), sizes)
        group = np.repeat(number, lengths)

        slots = self._slots_by_group(units, group, place)
        reason_of = [reasons[r - 1] if r else None for r in frozen[units[starts[example]]].tolist()]
        group = self._finish_groups(slots, sizes.tolist(), reason_of)[group]
        self.group_of_root = np.full(self._space.size, -1, dtype=np.int64)
        self.group_of_root[units] = group
        # All units of all groups form one row; labels that are no channels get the place behind the last.
        self.first_unit = np.cumsum([0, *(g.size for g in self.groups)])
        self.unit_of_root = np.full(self._space.size, self.first_unit[-1])
        self.unit_of_root[units] = np.where(group >= 0, self.first_unit[group] + place, self.first_unit[-1])

    def _slots_by_group(self, units: Labels, group: Labels, place: Labels) -> dict[int, list[GroupSlot]]:
        """Return the slots of each group, given the units' smallest labels, their groups and their places in these."""
        unit_of_root = np.full(self._space.size, -1, dtype=np.int64)
        unit_of_root[units] = np.arange(len(units))
        slot, labels = self.representatives
        unit = unit_of_root[self.component[labels]]
        slot, labels, unit = slot[unit >= 0], labels[unit >= 0], unit[unit >= 0]
        # All labels that a group has in a slot stand together; mostly they do already.
        part = group[unit] * len(self._space.slots) + slot
        starts, lengths = _runs(part)
        order = np.argsort(part[starts], kind="stable")
        together = ranges(starts[order], lengths[order])
        index, place = (labels - self.starts[slot])[together], place[unit][together]
        parts, first_run = np.unique(part[starts[order]], return_index=True)
        begins = (np.cumsum(lengths[order]) - lengths[order])[first_run]
        siblings: dict[int, list[int]] = {}
        for number, first in enumerate(self.slot_classes.tolist()):
            siblings.setdefault(first, []).append(number)
        found = []
        for key, (begin, end) in zip(parts.tolist(), pairwise([*begins.tolist(), len(part)]), strict=True):
            of_group, first = divmod(key, len(self._space.slots))
            found += [(of_group, number, index[begin:end], place[begin:end]) for number in siblings[first]]
        slots: dict[int, list[GroupSlot]] = {}
        for of_group, number, taken, of_unit in sorted(found, key=itemgetter(0, 1)):
            where = self._space.slots[number]
            slots.setdefault(of_group, []).append(GroupSlot(where.tensor, where.dim, taken, of_unit))
        return slots

    def _frozen_components(self) -> tuple[Labels, list[str]]:
        """Return each component's state: 0 prunable, n > 0 frozen for reason number n, -1 not a channel."""
        frozen = np.zeros(self._space.size, dtype=np.int64)
        silent = [f.labels for f in self._space.freezes if f.reason is None]
        spoken = [f for f in self._space.freezes if f.reason is not None]
        if silent:
            frozen[self.component[np.concatenate(silent)]] = -1
        reasons: list[str] = []
        numbers: dict[str, int] = {}
        for freeze in reversed(spoken):  # so that the first reason is the one that stays
            text = f"{freeze.reason} ({self._records[freeze.op]})" if freeze.op >= 0 else str(freeze.reason)
            if text not in numbers:
                reasons.append(text)
                numbers[text] = len(reasons)
            frozen[self.component[freeze.labels]] = numbers[text]
        return frozen, reasons

    def _finish_groups(
        self, slots: Mapping[int, list[GroupSlot]], sizes: Sequence[int], reasons: Sequence[str | None]
    ) -> Labels:
        """Name the groups after their layers, in forward order; return each group's new number, -1 if it is dropped."""
        rank = {(layer.weight, layer.dim): i for i, layer in reversed(list(enumerate(self._layers)))}
        entries = []
        for number, members in slots.items():
            makers = [rank[key] for s in members if (key := (s.tensor, s.dim)) in rank]
            size = sizes[number]
            if not makers and size == 1:
                continue  # a dimension of size one, united with nothing, is no channel
            reason = reasons[number]
            if reason is None and not makers:
                reason = "they are not the filters of a single convolution or linear layer"
            if reason is None and size == 1:
                reason = "all its channels are bound together, or there is only one"
            label = self._layers[min(makers)].name if makers else members[0].tensor
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


def _runs(values: np.ndarray) -> tuple[Labels, Labels]:
    """Return where runs of equal values start, and how long they are."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return starts, np.diff(starts, append=len(values))


def _random_bits(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, size=count, dtype=np.uint64)
