"""Size attributes: numbers in a model's modules that have to follow a cut, such as head counts and written-out widths.

Where a dry run fails, the module that is running may hold the number that its code asks for: ``self.num_heads`` in
``view(b, n, 3, self.num_heads, -1)``, ``self.hidden_dim`` in ``reshape(n, self.hidden_dim, -1)``. Such a number is
rewritten with the cut. Nothing is taken for granted: the next dry run shows whether it was the right one, and what
is still in the way then stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import nn

from infoprune.structure.groups import AttributeSlot, Structure
from infoprune.structure.labels import Labels
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tracing.rule_context import STILL_ADDS
from infoprune.structure.tracing.rules.contraction import HEAD_WIDTH
from infoprune.structure.tracing.rules.reduction import SOFTMAX
from infoprune.structure.tracing.rules.shape import MERGED
from infoprune.structure.validation.conflict import COMPUTED, FACTOR, FIXED, Conflict
from infoprune.structure.validation.held_number_search import AskedFor, HeldNumberSearch
from infoprune.structure.validation.module_paths import ancestors, join, siblings
from infoprune.structure.validation.taken_numbers import Candidate, Heads, Rewrite
from infoprune.structure.validation.ways import free_channels

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession


Splits: TypeAlias = dict[str, dict[int, set[int]]]
"""For modules, by name: numbers of parts that a dimension is split into, and for each the widths of these parts."""

MOST_TRIES = 6
"""So many times at most a number is taken for a width that one operator asks for: each takes a dry run."""


class SizeAttributeFinder:
    """Find the attributes of a model that follow its widths."""

    def __init__(self, session: TraceSession) -> None:
        self._session = session
        self._heads: dict[str, Heads] = {}
        self._rewrites: dict[str, Rewrite] = {}
        self._tried: set[Candidate] = set()
        self._seen: set[str] = set()
        self._shared: set[str] = set()  # modules whose heads are not counted by one attribute

    @property
    def _numbers(self) -> HeldNumberSearch:
        # Made anew for each question: an attribute would be a reference cycle, which keeps the model's old weights.
        return HeldNumberSearch(self._session, self._head_count_paths)

    def slots(self) -> Iterator[AttributeSlot]:
        """Return every attribute found, with the labels whose number it is."""
        for module, heads in self._heads.items():
            labels = self._session.space.head_labels.get(module)
            if labels is not None and len(labels) == heads.count:  # else it is another dimension that was found
                yield AttributeSlot(join(module, heads.attribute), heads.count, labels)
        yield from (written.slot for written in self._rewrites.values())

    def _head_count_paths(self) -> set[str]:
        return {slot.path for slot in self.slots()} - set(self._rewrites)

    def find(self, structure: Structure, plan: PruningPlan, conflicts: Sequence[Conflict]) -> bool:
        """Look for attributes that explain the conflicts of a plan; False if all were tried before.

        Args:
            structure: the channel groups.
            plan: the probe plan.
            conflicts: what its dry run returned.
        """
        if self._split_into_heads(dict.fromkeys(conflict.module for conflict in conflicts)):
            return True
        if self._share_heads(dict.fromkeys(c.module for c in conflicts if c.reason == FACTOR)):
            return True
        conflicts = [conflict for conflict in conflicts if conflict.reason not in COMPUTED]  # which no size explains
        modules = dict.fromkeys(conflict.module for conflict in conflicts)
        if any(
            self._rewrite_sizes(structure, conflicts, way)
            for way in (self._numbers.by_operators, self._numbers.by_elements)
        ):
            return True
        tied = [self._tie_inputs(structure, module) for module in modules]
        if any(tied) or self._rewrite_sizes(structure, conflicts, self._numbers.by_checks):
            return True
        return self._take_other_head_counts(modules)

    def find_frozen_heads(self) -> bool:
        """Let modules lose whole heads where the width of a head has to stay."""
        width, merged = (
            dict.fromkeys(self._session.records[f.op].module for f in self._session.space.freezes if f.reason == reason)
            for reason in (HEAD_WIDTH, MERGED)
        )
        # Of heads that share others, some may have been cut by whole heads and some in width: they merge.
        return self._split_into_heads(width) or self._share_heads([*width, *merged])

    def free_heads(self, structure_now: Callable[[], Structure]) -> None:
        """Let modules lose whole heads where their code keeps the channels of a head together, if that frees more.

        Args:
            structure_now: returns the structure, as far as the operators tell.
        """
        records, freezes = self._session.records, self._session.space.freezes
        kept = [(records[f.op].module, f.labels) for f in freezes if f.reason in (STILL_ADDS, SOFTMAX)]
        modules = dict.fromkeys(module for module, labels in kept if self._makes(module, labels))
        splits = self._splits() if modules else {}
        if not any(self._head_counts(module, splits) for module in modules):
            return
        known, before, state = dict(self._heads), free_channels(structure_now()), self._session.state()
        if self._split_into_heads(modules) and free_channels(structure_now()) < before:
            self._heads = known
            self._session.restore(state)

    def _makes(self, module: str, labels: Labels) -> bool:
        """Return whether labels are of filters inside a module."""
        slot = next(iter(self._session.space.slots_with(labels)), None)
        return slot is not None and slot.dim == 0 and slot.tensor.startswith(f"{module}." if module else "")

    # -- heads --------------------------------------------------------------------------------------------------------

    def _split_into_heads(self, modules: Iterable[str]) -> bool:
        """Let modules, and all of their classes, lose whole heads; the model runs again for that."""
        found = False
        splits = self._splits()
        for module in modules:
            attributes = () if module in self._seen else self._head_counts(module, splits)
            for sibling in self._with_siblings(module) if attributes else ():
                if sibling not in self._seen:
                    found |= self._take_head_count(sibling, attributes, splits)
                self._seen.add(sibling)
            self._seen.add(module)
        if found:
            self.retrace()
        return found

    def add_pytorch_heads(self) -> None:
        """Let PyTorch's own attention lose whole heads, before the model runs; its input is as wide as all of them."""
        space = self._session.space
        for name, module in self._session.modules.items():
            if type(module) is nn.MultiheadAttention:
                weight = "q_proj_weight" if module.in_proj_weight is None else "in_proj_weight"
                self._heads[name] = Heads("num_heads", module.num_heads, (), doubtful=False, tied=True)
                space.head_splits[name] = {(module.num_heads, module.head_dim)}
                space.head_inputs[name] = self._session.labels[join(name, weight)][1]
                self._seen.add(name)

    def _take_head_count(self, module: str, attributes: Sequence[str], splits: Splits) -> bool:
        """Take the first attribute that says into how many parts a module splits a dimension as its number of heads."""
        for place, attribute in enumerate(attributes):
            count = self._numbers.integers(module).get(attribute, 0)
            widths = splits.get(module, {}).get(count)
            if widths:
                self._heads[module] = Heads(attribute, count, attributes[place + 1 :], len(attributes) > 1)
                # Where q, k and v are as many as the heads, the finest split is the one into heads.
                self._session.space.head_splits[module] = {(count, min(widths))}
                return True
        return False

    def _take_other_head_counts(self, modules: Iterable[str]) -> bool:
        """Take the next of several attributes as the number of heads if the code does not follow the last one.

        First drop the rewrites that were made with the last one: they may be the cause.
        """
        doubtful = {name for name, heads in self._heads.items() if heads.doubtful}
        alike = dict.fromkeys(sibling for module in modules for sibling in self._with_siblings(module))
        wrong = [sibling for sibling in alike if sibling in doubtful]
        rewritten = [path for path in self._rewrites if path.rpartition(".")[0] in wrong]
        for path in rewritten:
            del self._rewrites[path]
        if rewritten or not wrong:
            return bool(rewritten)
        splits = self._splits()
        for module in wrong:
            others = self._heads.pop(module).others
            del self._session.space.head_splits[module]
            if self._take_head_count(module, others, splits):
                self._heads[module].doubtful = True
        self._tried.clear()
        self.retrace()
        return True

    def retrace(self) -> None:
        """Run the model again, and drop the unions that were made besides its operators."""
        self._session.retrace()
        for name, heads in self._heads.items():
            heads.tied = name in self._session.space.head_inputs

    def _share_heads(self, modules: Iterable[str]) -> bool:
        """Let modules lose whole heads where no attribute alone says how many there are; the model runs again for that.

        Several query heads may share a key and value head, and code may ask for -1 heads. The numbers that it does ask
        for are found as other sizes are.
        """
        splits, head_splits = self._splits(), self._session.space.head_splits
        found = False
        for module in modules:
            for sibling in self._with_siblings(module):
                counts = splits.get(sibling, {})
                widths = set().union(*counts.values())
                if sibling not in head_splits and sibling not in self._shared and len(widths) == 1:
                    self._shared.add(sibling)
                    head_splits[sibling] = {(count, width) for count in counts for width in widths}
                    found = True
        if found:
            self._rewrites.clear()  # they were made for the widths of heads
            self._tried.clear()
            self._session.retrace()
        return found

    def give_up_shared_heads(self, structure: Structure, plan: PruningPlan, conflicts: Sequence[Conflict]) -> bool:
        """Let no whole heads go where the code writes out how many there are; what heads are not made of then may go.

        Args:
            structure: the channel groups.
            plan: the plan.
            conflicts: what its dry run returned.
        """
        space, component = self._session.space, structure.component
        found = False
        for module in {c.module for c in conflicts if c.reason == FIXED} & self._shared & space.head_splits.keys():
            heads, labels = space.head_labels.get(module), [c.labels for c in conflicts if c.module == module]
            if heads is not None and np.isin(component[np.concatenate(labels)], component[heads]).any():
                for sibling in self._with_siblings(module):
                    found |= sibling in self._shared and space.head_splits.pop(sibling, None) is not None
        if found:
            self.retrace()
        return found

    def _head_counts(self, module: str, splits: Splits) -> list[str]:
        """Return the attributes that hold the number of parts that a module splits a dimension into, if all agree."""
        counts = splits.get(module, {})
        found = {name: value for name, value in self._numbers.integers(module).items() if value in counts}
        return list(found) if len(set(found.values())) == 1 else []

    def _splits(self) -> Splits:
        """Return by module the numbers of parts that its code splits dimensions into, each with the parts' widths."""
        found: Splits = {}
        for record in self._session.records:
            for *counts, width in record.splits:
                for count in counts:
                    found.setdefault(record.module, {}).setdefault(count, set()).add(width)
        return found

    def _tie_inputs(self, structure: Structure, module: str) -> bool:
        """Tie blocks of indices to heads where the input's width has to be head width times number of heads."""
        if module not in self._heads or self._heads[module].tied:
            return False
        known = len(self._session.space.unions)
        for sibling in self._with_siblings(module):
            heads, labels = self._heads.get(sibling), self._session.space.head_labels.get(sibling)
            if heads is None or heads.tied or labels is None:
                continue
            heads.tied = True
            ((_, width),) = self._session.space.head_splits[sibling]
            size = width * heads.count
            of_heads = structure.component[labels]
            for axis, op in self._axes_made(structure, sibling, size):
                if not np.isin(structure.component[axis], of_heads).any():  # the heads of a batch may be as many
                    self._session.space.unite(np.repeat(labels, len(axis) // heads.count), axis, op)
        return len(self._session.space.unions) > known  # else a dry run would find what the last one found

    def _axes_made(self, structure: Structure, module: str, size: int) -> Iterator[tuple[Labels, int]]:
        """Yield the removable dimensions of a size that a module makes, with the operators that make them."""
        seen: set[bytes] = set()
        end = self._session.space.slots_end()
        for number, record in enumerate(structure.records):
            for axis in record.axes if module in ancestors(record.module) else ():
                if len(axis) != size or axis.tobytes() in seen:
                    continue
                if ((axis >= 0) & (axis < end)).all() and not structure.stays[axis].all():  # else the code stretched it
                    seen.add(axis.tobytes())
                    yield axis, number

    # -- written-out widths -------------------------------------------------------------------------------------------

    def _rewrite_sizes(self, structure: Structure, conflicts: Sequence[Conflict], asked_for: AskedFor) -> bool:
        """Yield widths that modules hold as numbers; if several numbers of a module fit, one at a time."""
        found: set[str] = set()
        own: list[Candidate] = []  # that the module which failed takes
        for conflict in conflicts:
            if conflict.in_sibling and conflict.op >= 0:
                continue  # the operator is not its own
            for paths, axis, place in asked_for(structure, conflict):
                candidates = [Candidate(path, conflict.asking, place) for path in paths]
                wanted = self._as_taken(candidates, own) if conflict.in_sibling else candidates
                if not found.isdisjoint(paths) or not wanted:
                    continue  # first try the one that was taken
                self._give_up(candidates)
                candidate = self._next(wanted)
                if candidate is not None and np.isin(axis, conflict.labels).any():
                    slot = AttributeSlot(candidate.path, len(axis), axis)
                    self._rewrites[candidate.path] = Rewrite(slot, candidate, conflict.in_sibling)
                    self._tried.add(candidate)
                    found.add(candidate.path)
                    own += [] if conflict.in_sibling else [candidate]
        return bool(found)

    def _as_taken(self, candidates: Sequence[Candidate], own: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates to try in a sibling; a guess that turned out wrong in the module itself is replaced."""
        written = next((self._rewrites[c.path] for c in candidates if c.path in self._rewrites), None)
        if written is None:
            return candidates
        taken = {(candidate.attribute, candidate.place) for candidate in own}
        alike = [candidate for candidate in candidates if (candidate.attribute, candidate.place) in taken]
        return alike if written.guessed and written.candidate not in alike else []

    def _give_up(self, candidates: Sequence[Candidate]) -> None:
        """Drop rewrites after which the code failed at the same request; other candidates may be tried again."""
        for candidate in candidates:
            written = self._rewrites.get(candidate.path)
            if written and (written.guessed or written.candidate.op > candidate.op or written.candidate == candidate):
                del self._rewrites[candidate.path]
                if written.guessed:
                    self._tried.discard(written.candidate)

    def _next(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return the first that was not tried yet, if not too many were for the same operator."""
        untried = (
            candidate
            for candidate in candidates
            if candidate.path not in self._rewrites and candidate not in self._tried
        )
        alike = {candidate[:2] for candidate in candidates}
        return next(untried, None) if sum(tried[:2] in alike for tried in self._tried) < MOST_TRIES else None

    def _with_siblings(self, name: str) -> list[str]:
        return [name, *siblings(self._session.modules, name)]
