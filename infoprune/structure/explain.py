"""Explain in words why channels are coupled or frozen."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from infoprune.errors import ConfigurationError, nearest
from infoprune.structure.labels import Labels

if TYPE_CHECKING:
    from infoprune.structure.channel_groups import ChannelGroup
    from infoprune.structure.groups import Structure

_SIDES = {0: "filters", 1: "input channels"}


def explain(structure: Structure, name: str) -> str:
    """Return the groups that ``name`` (a group, layer or tensor) takes part in, and the operators that bind them.

    Args:
        structure: the traced model.
        name: a group, layer or tensor.

    Returns:
        Lines of text; one paragraph for each group.

    Raises:
        ConfigurationError: nothing has that name.
    """
    tensors = {slot.tensor for slot in structure.space.slots}
    wanted = {t for t in tensors if t == name or t.startswith(f"{name}.")}
    groups = [g for g in structure.groups if g.name == name or any(s.tensor in wanted for s in g.slots)]
    if not groups:
        known = [*(g.name for g in structure.groups), *(layer.name for layer in structure.layers), *tensors]
        raise ConfigurationError(f"no group, layer or tensor is called {name!r}{nearest(name, known)}")
    return "\n\n".join(explain_group(structure, group) for group in groups)


def explain_group(structure: Structure, group: ChannelGroup) -> str:
    """Describe one group: its slots, the operators that couple them, or the reason why it is frozen.

    Args:
        structure: the traced model.
        group: one of its groups.

    Returns:
        Lines of text.
    """
    if group.frozen:
        lines = [f"{group.name}: {group.size} units stay, because one of their channels {group.reason}."]
    else:
        lines = [f"{group.name}: {group.size} units can be pruned. One unit takes from"]
    steps = _ways(structure, group)
    for slot in group.slots:
        each = len(slot.index) // group.size
        what = _SIDES.get(slot.dim, f"dimension {slot.dim}") if slot.tensor.endswith("weight") else "entries"
        way = steps.get((slot.tensor, slot.dim))
        lines.append(f"  {slot.tensor}: {each} of its {what}{f', through {way}' if way else ''}")
    return "\n".join(lines)


def _ways(structure: Structure, group: ChannelGroup) -> dict[tuple[str, int], str]:
    """Return for each slot of a group the operators that lead to it from the group's first slot."""
    ends = structure.space.slots_end()
    starts = np.array([slot.start for slot in structure.space.slots])
    own = [structure.space.labels[part.tensor][part.dim][part.index] for part in group.slots]
    members = np.zeros(structure.space.size, dtype=bool)
    members[structure.component[np.concatenate(own)]] = True
    edges: dict[int, list[tuple[int, int]]] = {}

    def nodes(labels: Labels) -> Labels:
        """Build the graph: slots are nodes; labels without a slot are nodes of their own, behind them."""
        return np.where(labels < ends, np.searchsorted(starts, labels, side="right") - 1, labels)

    for union in structure.space.unions:
        inside = members[structure.component[union.a]]
        for here, there in set(zip(nodes(union.a[inside]).tolist(), nodes(union.b[inside]).tolist(), strict=True)):
            edges.setdefault(here, []).append((there, union.op))
            edges.setdefault(there, []).append((here, union.op))
    origin = int(nodes(own[0])[0])
    ways: dict[int, str] = {origin: ""}
    queue = deque([origin])
    while queue:
        here = queue.popleft()
        for there, op in edges.get(here, ()):
            if there not in ways:
                step = str(structure.records[op])
                ways[there] = f"{ways[here]}, then {step}" if ways[here] and not ways[here].endswith(step) else step
                queue.append(there)
    known = enumerate(structure.space.slots)
    return {(slot.tensor, slot.dim): ways[i] for i, slot in known if ways.get(i)}
