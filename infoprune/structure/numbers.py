"""Numbers that a model's code keeps in attributes and that have to follow a cut: head counts, written-out widths.

Where a rehearsal fails, the module that is running may hold the number that its code asks for: ``self.num_heads`` in
``view(b, n, 3, self.num_heads, -1)``, ``self.hidden_dim`` in ``reshape(n, self.hidden_dim, -1)``. Such a number is
rewritten with the cut. Nothing is taken for granted: the next rehearsal shows whether it was the right one, and what
is still in the way then stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from torch import nn

from infoprune.structure.attributes import element
from infoprune.structure.blame import FACTOR, Blame
from infoprune.structure.groups import AttributeSlot, Structure
from infoprune.structure.labels import Labels
from infoprune.structure.rules.contraction import HEAD_WIDTH

if TYPE_CHECKING:
    from infoprune.structure.trace import TraceSession


Splits: TypeAlias = dict[str, dict[int, set[int]]]
"""For modules, by name: numbers of parts that a dimension is split into, and for each the widths of these parts."""
AskedFor: TypeAlias = "Callable[[Structure, Blame], Iterable[tuple[list[str], Labels, int]]]"
"""What a rehearsal's blame says was asked for: numbers that it may have been, the dimension, and at which place."""


MOST_TRIES = 6
"""So many times at most a number is taken for a width that one operator asks for: each takes a rehearsal."""


@dataclass
class Heads:
    """Parts of a dimension of one module (attention heads) that go as wholes, their number an attribute of it."""

    attribute: str
    count: int
    tied: bool = False


class Taking(NamedTuple):
    """A number taken for the width of a dimension, because an operator asked for it at some place of its arguments."""

    path: str
    op: int
    place: int


@dataclass(frozen=True)
class Written:
    """A number that is rewritten: of which dimension, and what it was taken for.

    ``guessed``: because a module failed that runs the same code, not yet its own.
    """

    slot: AttributeSlot
    taking: Taking
    guessed: bool


class Numbers:
    """The attributes of a model that follow its widths, as far as they have been found."""

    def __init__(self, session: TraceSession) -> None:
        self._session = session
        self._heads: dict[str, Heads] = {}
        self._written: dict[str, Written] = {}
        self._tried: set[Taking] = set()
        self._seen: set[str] = set()

    def slots(self) -> Iterator[AttributeSlot]:
        """Every attribute found, with the labels whose number it is."""
        for module, heads in self._heads.items():
            labels = self._session.space.head_labels.get(module)
            if labels is not None and len(labels) == heads.count:  # else it is another dimension that was found
                yield AttributeSlot(_join(module, heads.attribute), heads.count, labels)
        yield from (written.slot for written in self._written.values())

    def find(self, structure: Structure, blamed: Sequence[Blame]) -> bool:
        """Look for numbers that explain what is in a cut's way; False if there is none that was not tried before."""
        if self._split_into_heads(dict.fromkeys(blame.module for blame in blamed)):
            return True
        blamed = [blame for blame in blamed if blame.reason != FACTOR]  # which no size explains
        modules = dict.fromkeys(blame.module for blame in blamed)
        if self._take_written(structure, blamed, self._by_operators):
            return True
        tied = [self._tie_inputs(structure, module) for module in modules]
        return any(tied) or self._take_written(structure, blamed, self._by_checks)

    def find_frozen_heads(self) -> bool:
        """Let modules lose whole heads where the width of a head has to stay."""
        frozen = [f.op for f in self._session.space.freezes if f.reason == HEAD_WIDTH]
        records = self._session.records
        return self._split_into_heads([records[op].module for op in frozen])

    # -- heads --------------------------------------------------------------------------------------------------------

    def _split_into_heads(self, modules: Iterable[str]) -> bool:
        """Let modules, and all of their classes, lose whole heads; the model runs again for that."""
        before = len(self._heads)
        splits = self._splits()
        for module in modules:
            attribute = None if module in self._seen else self._head_count(module, splits)
            for like in self._likes(module) if attribute else ():
                count = self._integers(like).get(str(attribute), 0)
                widths = splits.get(like, {}).get(count)
                if like not in self._seen and widths:
                    self._heads[like] = Heads(str(attribute), count)
                    # Where q, k and v are as many as the heads, the finest split is the one into heads.
                    self._session.space.head_splits[like] = (count, min(widths))
                self._seen.add(like)
            self._seen.add(module)
        if len(self._heads) == before:
            return False
        self._session.run_again()
        for heads in self._heads.values():
            heads.tied = False  # what was united is forgotten with the run before
        return True

    def _head_count(self, module: str, splits: Splits) -> str | None:
        """The attribute that says into how many parts the module splits a dimension, if there is one alone."""
        counts = splits.get(module, {})
        names = [name for name, value in self._integers(module).items() if value in counts]
        return names[0] if len(names) == 1 else None

    def _splits(self) -> Splits:
        """By module: into how many parts, of more than one index each, its code splits dimensions; their widths."""
        found: Splits = {}
        for record in self._session.records:
            for *counts, width in record.splits:
                for count in counts:
                    found.setdefault(record.module, {}).setdefault(count, set()).add(width)
        return found

    def _tie_inputs(self, structure: Structure, module: str) -> bool:
        """Where head width times number of heads has to be the width that comes in: tie blocks of that to heads."""
        if module not in self._heads or self._heads[module].tied:
            return False
        likes = self._likes(module)
        inside = self._operators_inside(structure, likes)
        for like in likes:
            heads, labels = self._heads.get(like), self._session.space.head_labels.get(like)
            if heads is None or heads.tied or labels is None:
                continue
            heads.tied = True
            size = self._session.space.head_splits[like][1] * heads.count
            for axis, op in self._axes_made(structure, inside[like], size):
                self._session.space.unite(np.repeat(labels, len(axis) // heads.count), axis, op)
        return self._heads[module].tied

    def _operators_inside(self, structure: Structure, modules: Sequence[str]) -> dict[str, list[int]]:
        """By module: the numbers of the operators that it and its children run."""
        found: dict[str, list[int]] = {module: [] for module in modules}
        for number, record in enumerate(structure.records):
            for module in around(record.module):
                if module in found:
                    found[module].append(number)
        return found

    def _axes_made(self, structure: Structure, numbers: Sequence[int], size: int) -> Iterator[tuple[Labels, int]]:
        """The removable dimensions of a size that operators make."""
        seen: set[bytes] = set()
        for number in numbers:
            for axis in (axis for output in structure.records[number].outputs for axis in output.axes):
                if axis is not None and len(axis) == size and (axis >= 0).all() and axis.tobytes() not in seen:
                    seen.add(axis.tobytes())
                    yield axis, number

    # -- written-out widths -------------------------------------------------------------------------------------------

    def _take_written(self, structure: Structure, blamed: Sequence[Blame], asked_for: AskedFor) -> bool:
        """Widths that modules hold as numbers; where several numbers of a module are that width, one after another."""
        found: set[str] = set()
        for blame in blamed:
            op = max(blame.op, blame.upcoming)
            if blame.like and blame.op >= 0:
                continue  # the operator is not its own
            for paths, axis, place in asked_for(structure, blame):
                takings = [Taking(path, op, place) for path in paths]
                if not found.isdisjoint(paths) or (blame.like and not self._written.keys().isdisjoint(paths)):
                    continue  # first see what the one that has been taken does
                self._give_up(takings)
                taking = self._next(takings)
                if taking is not None and np.isin(axis, blame.labels).any():
                    slot = AttributeSlot(taking.path, len(axis), axis)
                    self._written[taking.path] = Written(slot, taking, blame.like)
                    self._tried.add(taking)
                    found.add(taking.path)
        return bool(found)

    def _give_up(self, takings: Sequence[Taking]) -> None:
        """Leave the numbers alone with which the code got no further than to ask again; guesses may come again."""
        for taking in takings:
            written = self._written.get(taking.path)
            if written and (written.guessed or written.taking.op > taking.op or written.taking == taking):
                del self._written[taking.path]
                if written.guessed:
                    self._tried.discard(written.taking)

    def _next(self, takings: Sequence[Taking]) -> Taking | None:
        """The first that was not tried yet, if not too many were for the same operator."""
        untried = (taking for taking in takings if taking.path not in self._written and taking not in self._tried)
        alike = {taking[:2] for taking in takings}
        return next(untried, None) if sum(tried[:2] in alike for tried in self._tried) < MOST_TRIES else None

    def _by_operators(self, structure: Structure, blame: Blame) -> Iterator[tuple[list[str], Labels, int]]:
        """Each dimension that an operator makes, or splits, with the numbers that may stand for its size; its place."""
        op, module = max(blame.op, blame.upcoming), blame.module
        outputs = structure.records[op].outputs if op >= 0 else []
        splits = zip(*(output.axes for output in outputs), strict=False) if len(outputs) > 1 else ()
        parts = [[axis for axis in axes if axis is not None] for axes in splits if all(a is not None for a in axes)]
        for axes in [outputs[0].axes] if len(outputs) == 1 else parts:
            sizes = [0 if axis is None else len(axis) for axis in axes] if len(outputs) > 1 else outputs[0].shape
            paths = self._sequence(module, sizes)
            for place, (path, axis) in enumerate(zip(paths, axes, strict=False)):
                if axis is not None:
                    yield [path], axis, place
        made = [axis for output in outputs for axis in output.axes if axis is not None]
        for axis, place in [asked[:2] for asked in blame.asked] or zip(made, range(len(made)), strict=True):
            yield self._equal_numbers(module, len(axis)), axis, place
        for place, axes in enumerate(parts):
            yield self._equal_numbers(module, sum(map(len, axes))), np.concatenate(axes), place

    def _by_checks(self, structure: Structure, blame: Blame) -> Iterator[tuple[list[str], Labels, int]]:
        """Where the code itself fails, as if it checked what comes in: each width that its tensors have, once."""
        if blame.op < 0:
            within = f"{blame.module}." if blame.module else ""
            axes = (axis for name, axes in self._session.labels.items() if name.startswith(within) for axis in axes)
            for axis in {structure.component[axis].tobytes(): axis for axis in axes if len(axis)}.values():
                yield self._equal_numbers(blame.module, len(axis)), axis, int(axis[0])

    def _sequence(self, module: str, sizes: Sequence[int]) -> list[str]:
        """The places of the one list or tuple of a module that holds just these sizes, of a split or a shape."""
        held = vars(self._session.model.get_submodule(module))
        lists = {name: value for name, value in held.items() if type(value) in (list, tuple)}
        found = [
            name for name, value in lists.items() if all(type(n) is int for n in value) and list(value) == list(sizes)
        ]
        return [_join(module, element(found[0], place)) for place in range(len(sizes))] if len(found) == 1 else []

    def _equal_numbers(self, module: str, value: int) -> list[str]:
        """The numbers of a module, else of its children that are not PyTorch's own, that have a value."""
        children = self._session.model.get_submodule(module).named_children()
        own = [_join(module, name) for name, child in children if not type(child).__module__.startswith("torch.nn.")]
        head_counts = {slot.path for slot in self.slots()} - set(self._written)
        for places in ([module], own):
            found = [_join(place, name) for place in places for name, n in self._integers(place).items() if n == value]
            if found:
                return [path for path in found if path not in head_counts]
        return []

    # -- modules ------------------------------------------------------------------------------------------------------

    def _integers(self, module: str) -> dict[str, int]:
        numbers = vars(self._session.model.get_submodule(module))
        return {name: value for name, value in numbers.items() if type(value) is int and value > 1}

    def _likes(self, name: str) -> list[str]:
        return [name, *same_code(self._session.modules, name)]


@lru_cache(maxsize=4096)
def around(module: str) -> tuple[str, ...]:
    """The modules that one is in, itself first.

    >>> around("layer1.0.conv")
    ('layer1.0.conv', 'layer1.0', 'layer1', '')
    """
    parts = module.split(".") if module else []
    return tuple(".".join(parts[:n]) for n in range(len(parts), -1, -1))


def same_code(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """The other modules that run the same code as the one called ``name``.

    PyTorch's own layers do as they are told: their likes are in the same place of modules that run their owner's code.
    """
    module = modules[name]
    kind = type(module)
    if not _is_told(module):
        return [other for other, module in modules.items() if type(module) is kind and other != name]
    owner, _, child = name.rpartition(".")
    if not name:
        return []
    others = (_join(other, child) for other in same_code(modules, owner))
    return [other for other in others if type(modules.get(other)) is kind]


def _is_told(module: nn.Module) -> bool:
    """Whether what a module is given, and when, is up to the code around it: a layer of PyTorch's or a list of some."""
    single = next(module.children(), None) is None or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return single and type(module).__module__.startswith("torch.nn.")


def _join(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute
