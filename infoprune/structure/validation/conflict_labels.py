"""Find the labels that a conflict is about: those cut near the operator or code that shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from infoprune.structure.labels import Labels, LabelSpace
from infoprune.structure.plan import PruningPlan
from infoprune.structure.validation.module_paths import ancestors

if TYPE_CHECKING:
    from infoprune.structure.groups import Structure
    from infoprune.structure.tracing.session import TraceSession


def by_module(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Sort tensors by the modules that contain them.

    Args:
        tensors: names of parameters and buffers.

    Returns:
        Path of a module -> names of the tensors in it or below.
    """
    inside: dict[str, list[str]] = {}
    for tensor in tensors:
        for module in ancestors(tensor.rpartition(".")[0]):
            inside.setdefault(module, []).append(tensor)
    return inside


def cut_inside(session: TraceSession, keep: np.ndarray, cut: Mapping[str, list[str]], module: str) -> Labels:
    """Return the labels that the tensors ``cut`` lose in a module, or in the nearest one around it that loses any.

    Args:
        session: the traced model.
        keep: (labels + 1,) for every label whether it stays.
        cut: module -> names of its tensors that are cut.
        module: path of the module.
    """
    nearest = next(name for name in ancestors(module) if name in cut)
    return np.concatenate([axis[~keep[axis]] for tensor in cut[nearest] for axis in session.labels[tensor]])


def widths_behind(
    structure: Structure,
    session: TraceSession,
    plan: PruningPlan,
    keep: np.ndarray,
    module: str,
    changed: Sequence[tuple[float, float]],
    ratios: bool = True,
) -> list[Labels]:
    """Return the removed labels of the widths that explain a number, as the number itself or a power of it.

    Widths in attributes of the module come first, then widths equal to the number, then widths of the same ratio.

    Args:
        structure: the groups.
        session: the traced session.
        plan: the plan of the dry run.
        keep: its keep mask.
        module: path of the module that runs the operator.
        changed: the operator's numbers in the traced pass and in the dry run.
        ratios: whether widths of the same ratio explain them; of small whole numbers, too many have it.

    Returns:
        Arrays of labels; empty if no width explains the factors.
    """
    # Only positive ratios say anything about widths.
    pairs = [(before, after) for before, after in changed if before != after and before * after > 0]
    # Attributes of the running module explain its factors best; equal widths elsewhere may be a coincidence.
    held = []
    for slot in structure.attributes:
        before, after = plan.attributes.get(slot.path, (1, 1))
        if before != after and slot.path.rpartition(".")[0] == module:
            held.append((slot.labels, before, after))
    axes = {id(axis): axis for own in session.labels.values() for axis in own}.values()
    widths = [(axis, len(axis), int(keep[axis].sum())) for axis in axes if not keep[axis].all()]
    equal = [width for width in widths if any(_are_powers(pair, width[1:]) for pair in pairs)]
    for known in (held, equal, widths if ratios else []):
        shares = ((labels, before / after) for labels, before, after in known)
        found = [labels for labels, share in shares if any(_is_power(b / a, share) for b, a in pairs)]
        if found:
            return [labels[~keep[labels]] for labels in found]
    return []


def cut_around(space: LabelSpace, axis: Labels, keep: np.ndarray) -> Labels:
    """Return the removed labels of the slots that hold the labels of an axis.

    Args:
        space: of all labels.
        axis: labels that are left.
        keep: (labels + 1,) for every label whether it stays.
    """
    found = [space.labels[slot.tensor][slot.dim] for slot in space.slots_with(axis)]
    return np.concatenate([labels[~keep[labels]] for labels in found] or [np.empty(0, dtype=np.int64)])


_POWERS = (1, -1, 0.5, -0.5)
"""How factors depend on widths: a mean divides by one, attention by its root."""


def _is_power(value: float, width: float) -> bool:
    return any(math.isclose(value, width**power) for power in _POWERS)


def _are_powers(factors: tuple[float, float], widths: Sequence[int]) -> bool:
    """Return whether two factors are two widths to the same power."""
    pairs = list(zip(factors, widths, strict=True))
    return any(all(math.isclose(factor, width**power) for factor, width in pairs) for power in _POWERS)
