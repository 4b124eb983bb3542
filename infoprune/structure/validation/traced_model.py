"""`TracedModel`: run plans dry and apply resolvers to their conflicts, until the code follows.

The labels say what the operators do with channels. What the model's own code does with sizes, no label says: it may
hold a width as a number, read it from another tensor, or count on it. So a plan is run dry, and each conflict that
shows is put before the resolvers in turn; the first that knows a way changes the label space or the size attributes,
and the plan is run again. The last resolver always knows one: the channels stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Protocol, TypeVar

import numpy as np

from infoprune.errors import PlanError
from infoprune.structure.channel_groups import ChannelGroup
from infoprune.structure.collector import collector_paused
from infoprune.structure.groups import Structure
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tracing.examples import count_examples
from infoprune.structure.tracing.measured_products import run_products, with_labels
from infoprune.structure.tracing.records import Contraction
from infoprune.structure.tracing.session import TraceSession
from infoprune.structure.tracing.tracer import Tracer
from infoprune.structure.validation import size_aliases
from infoprune.structure.validation.conflict import Conflict
from infoprune.structure.validation.dry_run import bisect, dry_run
from infoprune.structure.validation.probe_plans import probe_plans, tells_less
from infoprune.structure.validation.size_attributes import SizeAttributeFinder
from infoprune.structure.validation.ways import WayFinder

MAX_DRY_RUNS = 50
"""So often at most a cut is tried, each time with one conflict less."""

Resolver = Callable[[Structure, PruningPlan, "list[Conflict]"], bool]
"""Change something that may let the code follow a plan; False where it knows nothing to change."""


class HasPlan(Protocol):
    """A decision that says which units go."""

    @property
    def plan(self) -> PruningPlan:
        """The plan."""


Decided = TypeVar("Decided", bound=HasPlan)


class TracedModel:
    """A traced model, and the conflicts that were found and resolved in it.

    Args:
        session: the model, which is run here.
    """

    def __init__(self, session: TraceSession) -> None:
        self.session = session
        self._size_attributes = SizeAttributeFinder(session)
        self._size_attributes.add_pytorch_heads()
        session.run()
        self._ways = WayFinder(session)
        self._followed: Sequence[ChannelGroup] = ()  # the groups whose probe plans had no conflict
        self._built: tuple[tuple[list[Tracer], int, int], Structure] | None = None
        self._size_attributes.find_frozen_heads()
        self._size_attributes.free_heads(lambda: self.structure)
        self._ways.free(lambda: self.structure)

    @property
    def structure(self) -> Structure:
        """Return the channel groups, as known from the operators and from the plans that were run dry."""
        session = self.session
        session.space.resolve_balances()
        attributes = list(self._size_attributes.slots())
        said = (session.passes.tracers, len(session.space.unions), len(session.space.freezes))
        if self._built is not None and self._built[0] == said:  # nothing new but attributes
            return self._built[1].with_attributes(attributes)
        structure = Structure(
            session.space,
            session.passes,
            max(count_examples(session.inputs), 1),
            attributes,
            session.caches,
            partial(self._measured, session.passes.counted) if session.numbers_made_up else None,
        )
        self._built = said, structure
        return structure

    def _measured(self, traced: Sequence[Contraction]) -> list[Contraction]:
        return with_labels(self._run_products, traced)

    @cached_property
    def _run_products(self) -> list[Contraction]:
        return run_products(self.session)

    def validate(self) -> Structure:
        """Run probe plans that cut every group, and resolve their conflicts.

        Returns:
            The structure; whatever the code does not follow is frozen in it.
        """
        with collector_paused(self.session.on_shapes):
            for _ in range(MAX_DRY_RUNS):
                structure = self.structure
                # The first probe plan with a conflict; the second is not run before the first has none.
                tried = ((trial, self.conflicts(structure, trial)) for trial in probe_plans(structure))
                trial, conflicts = next(((trial, found) for trial, found in tried if found), (None, []))
                if trial is None:
                    self._followed = structure.groups
                    return structure
                self._resolve(structure, trial, conflicts)
            for group in self.structure.prunable:
                for slot in group.slots:
                    labels = self.session.labels[slot.tensor][slot.dim][slot.index]
                    self.session.space.freeze(labels, "the model's code follows no probe plan that cuts it")
        return self.structure

    def settle(self, decide: Callable[[Structure], Decided]) -> Decided:
        """Repeat a decision until its plan has no conflicts.

        Args:
            decide: makes a decision for a structure; it is asked again with what conflicts has become of it.

        Raises:
            PlanError: no decision was followed; names the reason.
        """
        conflicts: list[Conflict] = []
        for _ in range(MAX_DRY_RUNS):
            structure = self.structure
            decision = decide(structure)
            conflicts = self.conflicts(structure, decision.plan)
            if conflicts:
                self._resolve(structure, decision.plan, conflicts)
                continue
            tried = self._followed is structure.groups or not tells_less(structure, decision.plan)
            if tried or self.validate().groups is structure.groups:
                return decision
        raise PlanError(f"no plan was found that the model's code follows: {conflicts[0].reason}; freeze that layer")

    def conflicts(self, structure: Structure, plan: PruningPlan) -> list[Conflict]:
        """Run a plan dry and return its conflicts.

        Args:
            structure: the channel groups.
            plan: what would go.
        """
        with collector_paused(self.session.on_shapes):
            return dry_run(self.session, structure, plan)

    def _resolve(self, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> None:
        # A tuple kept as an attribute would be a reference cycle, which keeps the model's old weights.
        resolvers: Sequence[Resolver] = (
            self._alias_sizes,
            self._size_attributes.find,  # splits dimensions into heads, or rewrites numbers that modules hold
            self._take_other_ways,
            self._size_attributes.give_up_shared_heads,
            self._freeze,
        )
        any(resolve(structure, plan, conflicts) for resolve in resolvers)

    def _alias_sizes(self, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> bool:
        """Resolver: unite dimensions with those from which the code reads their width."""
        return size_aliases.tie(self.session, structure, plan, conflicts)

    def _take_other_ways(self, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> bool:
        """Resolver: let operators that couple the channels in conflict remove them in another way."""
        labels = np.concatenate([conflict.labels for conflict in conflicts])
        return self._ways.take_untried(structure, labels, self._traced_again)

    def _traced_again(self) -> Structure:
        self._size_attributes.retrace()
        return self.structure

    def _freeze(self, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]) -> bool:
        """Resolver: freeze the groups that conflict, and nothing else."""
        settled: set[int] = set()
        for conflict in bisect(self.session, structure, plan, conflicts):
            groups = set(structure.groups_cut(conflict.labels).tolist())
            if not groups or groups - settled:
                self.session.space.freeze(structure.whole_groups(conflict.labels), conflict.reason, conflict.op)
            settled |= groups
        return True
