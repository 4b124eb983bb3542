"""`PlannedCut`: what a plan leaves of a traced model's labels, and what it takes near an operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from infoprune.structure.groups import Structure
from infoprune.structure.labels import Labels, distinct
from infoprune.structure.labels.tensor_labels import Axis
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tracing.records import Output
from infoprune.structure.tracing.session import TraceSession
from infoprune.structure.validation.module_paths import ancestors

_POWERS = (1, -1, 0.5, -0.5)
"""How factors depend on widths: a mean divides by one, attention by its root."""


class PlannedCut:
    """A plan that is run dry on a traced model.

    Args:
        session: the model.
        structure: its channel groups.
        plan: what would go.

    Attributes:
        keep: (labels + 1,) for every label whether it stays.
        slots: the labels that the plan leaves of each slot, by their identity.
    """

    def __init__(self, session: TraceSession, structure: Structure, plan: PruningPlan) -> None:
        self.session = session
        self.structure = structure
        self.plan = plan
        self.keep = structure.keep_mask(plan)
        self._kept = {id(axis): axis for axes in session.labels.values() for axis in axes}
        for tensor, dims in plan.removed.items():
            for axis in (session.labels[tensor][dim] for dim in dims):
                self._kept[id(axis)] = axis[self.keep[axis]]
        self.slots = {id(axis): axis for axis in self._kept.values()}

    def kept(self, axis: Labels) -> Labels:
        """Return an axis without its removed labels, as one shared array for each axis.

        Args:
            axis: (n,) labels of a tensor of the traced pass.

        Returns:
            (m,) labels that stay.
        """
        kept = self._kept.get(id(axis))
        if kept is None:
            whole = self.keep[distinct(axis)].all()
            kept = self._kept[id(axis)] = axis if whole else axis[self.keep[axis]]
        return kept

    def kept_of(self, output: Output) -> list[Axis]:
        """Return every axis of a result without its removed labels; None for axes without labels.

        Args:
            output: a result of an operator of the traced pass.
        """
        return [None if axis is None else self.kept(axis) for axis in output.axes]

    def kept_numbers(self, numbers: Tensor, axes: Sequence[Axis]) -> Tensor:
        """Return the numbers of a result of the traced pass without those of removed channels.

        Args:
            numbers: the result.
            axes: its labels.
        """
        for dim, axis in enumerate(axes):
            if axis is not None and not self.keep[axis].all():
                numbers = numbers.index_select(dim, torch.as_tensor(np.flatnonzero(self.keep[axis])))
        return numbers

    def removed(self, axis: Labels) -> Labels:
        """Return those of some labels that the plan removes.

        Args:
            axis: (n,) labels.
        """
        return axis[~self.keep[axis]]

    def cuts_inside(self, module: str) -> bool:
        """Return whether a module has tensors, its own or its submodules', that are cut.

        Args:
            module: path of the module.
        """
        return module in self._cut_tensors

    def removed_inside(self, module: str) -> Labels:
        """Return the labels that the tensors of a module lose, or of the nearest one around it that loses any.

        Args:
            module: path of the module.
        """
        nearest = next(filter(self.cuts_inside, ancestors(module)))
        tensors = self._cut_tensors[nearest]
        return np.concatenate([self.removed(axis) for tensor in tensors for axis in self.session.labels[tensor]])

    def removed_around(self, axis: Labels) -> Labels:
        """Return the removed labels of the slots that hold the labels of an axis.

        Args:
            axis: labels that are left.
        """
        space = self.session.space
        found = [self.removed(space.labels[slot.tensor][slot.dim]) for slot in space.slots_with(axis)]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def widths_behind(self, changed: Sequence[tuple[float, float]], module: str, ratios: bool) -> list[Labels]:
        """Return the removed labels of the widths that explain a number, as the number itself or a power of it.

        Widths in attributes of the module come first, then widths equal to the number, then widths of the same ratio.

        Args:
            changed: an operator's numbers in the traced pass and in the dry run.
            module: path of the module that runs the operator.
            ratios: whether widths of the same ratio explain them; of small whole numbers, too many have it.

        Returns:
            Arrays of labels; empty if no width explains the factors.
        """
        # Only positive ratios say anything about widths.
        pairs = [(before, after) for before, after in changed if before != after and before * after > 0]
        # Attributes of the running module explain its factors best; equal widths elsewhere may be a coincidence.
        held = []
        for slot in self.structure.attributes:
            before, after = self.plan.attributes.get(slot.path, (1, 1))
            if before != after and slot.path.rpartition(".")[0] == module:
                held.append((slot.labels, before, after))
        axes = {id(axis): axis for own in self.session.labels.values() for axis in own}.values()
        widths = [(axis, len(axis), int(self.keep[axis].sum())) for axis in axes if not self.keep[axis].all()]
        equal = [width for width in widths if any(_are_powers(pair, width[1:]) for pair in pairs)]
        for known in (held, equal, widths if ratios else []):
            shares = ((labels, before / after) for labels, before, after in known)
            found = [labels for labels, share in shares if any(_is_power(b / a, share) for b, a in pairs)]
            if found:
                return [self.removed(labels) for labels in found]
        return []

    @cached_property
    def _cut_tensors(self) -> dict[str, list[str]]:
        """By path of a module: names of the tensors in it or below that the plan names."""
        inside: dict[str, list[str]] = {}
        for tensor in self.plan.shapes:
            for module in ancestors(tensor.rpartition(".")[0]):
                inside.setdefault(module, []).append(tensor)
        return inside


def _is_power(value: float, width: float) -> bool:
    return any(math.isclose(value, width**power) for power in _POWERS)


def _are_powers(factors: tuple[float, float], widths: Sequence[int]) -> bool:
    """Return whether two factors are two widths to the same power."""
    pairs = list(zip(factors, widths, strict=True))
    return any(all(math.isclose(factor, width**power) for factor, width in pairs) for power in _POWERS)
