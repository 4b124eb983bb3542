"""`LabelSpace`: labels for all channels, and the couplings and freezes that operators record.

A label stands for one index of one slot ("filter 7 of conv1.weight"). While the model runs on shapes, operators unite
labels (these indices must go together) or freeze them (this index must stay). Connected components of labels are the
*units* of pruning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infoprune.structure.labels.balance import balanced_pairs
from infoprune.structure.labels.components import Labels, connected, joined, ranges

OUTSIDE = -1
"""The label of an index that is not ours to remove: of an input, a constant, a padded border."""


class Slot(NamedTuple):
    """One dimension of one parameter or buffer; its labels are ``start .. start + size - 1``."""

    tensor: str
    dim: int
    size: int
    start: int


class Union(NamedTuple):
    """The labels ``a[i]`` and ``b[i]`` go together, because of operator number ``op`` (-1: not an operator)."""

    a: Labels
    b: Labels
    op: int


class Freeze(NamedTuple):
    """Labels that must stay. ``reason`` is None for dimensions that hold no channels (kernel positions)."""

    labels: Labels
    reason: str | None
    op: int


@dataclass(frozen=True, slots=True)
class Balance:
    """All ``parts`` (parts, positions) must lose equally many labels, whichever, because of operator ``op``."""

    parts: Labels
    op: int


class LabelSpace:
    """Hand out labels and record the constraints between them."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.labels: dict[str, list[Labels]] = {}
        """By tensor, the labels of each of its dimensions."""
        self.slot_numbers: dict[int, int] = {}
        """By the identity of such labels, the number of their slot; nearly all that meet are of a slot."""
        self.parameters: frozenset[str] = frozenset()
        """The names of those tensors with slots that are parameters, not buffers."""
        self.size = 0
        self.unions: list[Union] = []
        self.freezes: list[Freeze] = []
        self._balances: list[Balance] = []
        self.head_splits: dict[str, set[tuple[int, int]]] = {}
        """Modules that lose whole parts (attention heads) of the dimensions that they split: how many, and how wide."""
        self.head_inputs: dict[str, Labels] = {}
        """Modules among these that read as many channels as all parts have together: the labels of these channels."""
        self.ways: dict[int, int] = {}
        """Operators that let channels go in another way than the first of several: the number of that way."""
        self.head_labels: dict[str, Labels] = {}
        self._met: dict[int, tuple[Labels, Labels]] = {}
        """By identity: an axis that was united with another one, and that one."""
        self._joined: tuple[Labels, int] | None = None
        """The components that so many of the unions make."""
        self._slot_classes: tuple[Labels, int] | None = None
        """What so many of the unions make of `alike`."""

    def add_tensor(self, name: str, shape: Sequence[int]) -> list[Labels]:
        """Give every index of every dimension of a tensor its label.

        Args:
            name: name of a parameter or buffer.
            shape: its shape.

        Returns:
            For each dimension (size,) new labels.
        """
        axes = self.labels[name] = []
        for dim, size in enumerate(shape):
            slot, labels = Slot(name, dim, size, self.size), self.new_labels(size)
            self.slot_numbers[id(labels)] = len(self.slots)
            self.slots.append(slot)
            axes.append(labels)
        return axes

    def new_labels(self, size: int) -> Labels:
        """Return new labels. Those without a slot are for tensors that the code makes itself (``x.new_zeros(...)``).

        Such a tensor shrinks when the sizes that the code asks for shrink; the dry run finds out whether they do.

        Args:
            size: number of labels.

        Returns:
            (size,) labels that nothing else has.
        """
        self.size += size
        return np.arange(self.size - size, self.size, dtype=np.int64)

    def unite(self, a: Labels, b: Labels, op: int) -> None:
        """Note that ``a[i]`` and ``b[i]`` go together because of operator number ``op``.

        Args:
            a: (n,) labels.
            b: (n,) labels.
            op: number of the operator, in the order of the forward pass.
        """
        if a is not b:
            self.unions.append(Union(a, b, op))

    def freeze(self, labels: Labels, reason: str | None, op: int = -1) -> None:
        """Note that labels must stay.

        Args:
            labels: (n,) labels.
            reason: why, in words for the user; None: they are no channels at all.
            op: number of the operator; -1: none.
        """
        self.freezes.append(Freeze(labels, reason, op))

    def note_met(self, axes: Sequence[Labels]) -> None:
        """Record that axes were united as wholes, so that a freeze of one is a freeze of all.

        Args:
            axes: arrays of labels, all of one length.
        """
        first, *others = axes
        for other in others:
            if other is not first:
                self._met[id(other)] = other, self._first_met(first)

    def same_channels(self, a: Labels, b: Labels) -> bool:
        """Return whether two axes hold the same channels, perhaps in another order or more often.

        Args:
            a: (n,) labels.
            b: (m,) labels.
        """
        if a is b or self._first_met(a) is self._first_met(b):
            return True
        return np.array_equal(np.unique(a), np.unique(b))

    def _first_met(self, axis: Labels) -> Labels:
        while (found := self._met.get(id(axis))) is not None and found[1] is not axis:
            axis = found[1]
        return axis

    def balance(self, parts: Labels, op: int) -> None:
        """Note that ``parts`` (parts, positions) must lose equally many labels because of operator number ``op``.

        Args:
            parts: (parts, positions) labels; each row must lose as many as the others.
            op: number of the operator.
        """
        self._balances.append(Balance(parts, op))

    def resolve_balances(self) -> None:
        """Turn balances into unions, after all other constraints are known."""
        if not self._balances:
            return
        component, alike = self.components(), self.slot_classes()
        parent = np.arange(self.size, dtype=np.int64)  # of the roots that have been united since
        united = False

        def roots_of(labels: Labels) -> Labels:
            roots = component[labels]
            while united and not np.array_equal(up := parent[roots], roots):
                roots = up
            return roots

        def signatures() -> npt.NDArray[np.uint64]:
            return self.signatures(roots_of(np.arange(self.size)), alike)

        for balance in self._balances:
            first = balance.parts[0]
            for part in balance.parts[1:]:
                if np.array_equal(roots_of(first), roots_of(part)):
                    continue
                a, b = balanced_pairs(first, part, roots_of, signatures)
                self.unite(a, b, balance.op)
                roots, places = np.unique(np.stack([roots_of(a), roots_of(b)]), return_inverse=True)
                places = places.reshape(2, -1)
                parent[roots] = roots[connected(places[0], places[1], len(roots))]
                united = True
        self._balances.clear()

    def signatures(self, components: Labels, alike: Labels) -> npt.NDArray[np.uint64]:
        """Return for every component a hash of how many indices of which slots it takes.

        Args:
            components: (labels,) component of each label.
            alike: (slots,) for every slot the one that stands for it.

        Returns:
            (labels,) hashes, indexed by component; different components may share one by chance.
        """
        bits = np.random.default_rng(1).integers(0, 2**63, size=len(self.slots), dtype=np.uint64)
        sums = np.zeros_like(bits)
        np.add.at(sums, alike, bits)
        slot_of, labels = self.representatives(alike)
        signature = np.zeros(self.size, dtype=np.uint64)
        np.add.at(signature, components[labels], sums[slot_of])
        return signature

    def forget_operators(self) -> None:
        """Drop what has been noted of operators: all unions and balances, and the freezes that name one."""
        self.unions.clear()
        self.freezes = [freeze for freeze in self.freezes if freeze.op < 0]
        self._balances.clear()
        self._met.clear()
        self._joined = self._slot_classes = None

    def state(self) -> dict[str, Any]:
        """Return all that is noted at present, for `restore`."""
        return {name: copy(value) for name, value in vars(self).items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Forget what has been noted since `state` was called.

        Args:
            state: what `state` returned.
        """
        vars(self).update(state)

    def slots_end(self) -> int:
        """Return the number below which labels belong to slots; the others were made by :meth:`new_labels`."""
        return self.slots[-1].start + self.slots[-1].size if self.slots else 0

    def components(self) -> Labels:
        """Return the smallest label of each label's connected component, as an array over all labels."""
        if self._joined is None:
            starts, sizes = self._places()
            shifts = np.repeat(starts[self.slot_classes()] - starts, sizes)
            known = np.arange(self.size, dtype=np.int64)
            known[: len(shifts)] += shifts
            whole = self.slot_numbers
            unions = [union for union in self.unions if id(union.a) not in whole or id(union.b) not in whole]
        else:  # once more, with what has been noted since
            known, count = self._joined
            known = np.append(known, np.arange(len(known), self.size))
            unions = self.unions[count:]
        if unions:
            known = joined(known, np.concatenate([u.a for u in unions]), np.concatenate([u.b for u in unions]))
        self._joined = known, len(self.unions)
        return known

    def slot_classes(self) -> Labels:
        """Return for every slot the first one that it is united with as a whole, index by index."""
        if self._slot_classes is None or self._slot_classes[1] != len(self.unions):
            number = self.slot_numbers.get
            pairs = [(number(id(a), -1), number(id(b), -1)) for a, b, _ in self.unions]
            edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            edges = edges[(edges >= 0).all(axis=1)]
            self._slot_classes = connected(edges[:, 0], edges[:, 1], len(self.slots)), len(self.unions)
        return self._slot_classes[0]

    def representatives(self, alike: Labels) -> tuple[Labels, Labels]:
        """Return the labels of the first slot of each class, which stands for the others, and each label's slot.

        Args:
            alike: (slots,) for each slot the first of its class, from `slot_classes`.

        Returns:
            (n,) slots and (n,) labels.
        """
        firsts = np.flatnonzero(alike == np.arange(len(alike)))
        starts, sizes = (of_slots[firsts] for of_slots in self._places())
        return np.repeat(firsts, sizes), ranges(starts, sizes)

    def _places(self) -> tuple[Labels, Labels]:
        """Return the first label of every slot, and how many it has."""
        starts, sizes = np.array([(slot.start, slot.size) for slot in self.slots], dtype=np.int64).reshape(-1, 2).T
        return starts, sizes

    def slot_of(self, label: int) -> Slot | None:
        """Return the slot that a label belongs to; None if it has none.

        Args:
            label: a label.
        """
        place = bisect_right(self.slots, label, key=attrgetter("start")) - 1
        found = self.slots[place] if place >= 0 else None
        return found if found is not None and label < found.start + found.size else None

    def slots_with(self, labels: Labels) -> list[Slot]:
        """Return the slots that labels belong to, in order, each once.

        Args:
            labels: (n,) labels; those that have no slot are passed over.
        """
        starts, _ = self._places()
        inside = labels[(labels >= 0) & (labels < self.slots_end())]
        return [self.slots[place] for place in np.unique(np.searchsorted(starts, inside, side="right") - 1)]
