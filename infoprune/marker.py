"""The entry of a checkpoint's weights that says by its name that they are pruned, and holds the plan.

Scripts that never import infoprune load the weights of a checkpoint too. PyTorch then names the entry before all sizes
that do not fit. The entry survives where a script copies the weights, cuts a prefix off the names or drops the
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoprune.structure.plan import PruningPlan

MARKER = "these weights were pruned by infoprune: add 'import infoprune' to the script that loads them"
_END = MARKER[-60:]  # what is left of the name where a script cuts a prefix off


def mark(state: MutableMapping[str, Any], plan: PruningPlan) -> None:
    """Add the entry to a state dict, in place, if a plan removes anything.

    Args:
        state: The weights, by the names of the plan.
        plan: What they have lost.
    """
    if not plan.is_empty:
        import torch

        state[MARKER] = torch.frombuffer(bytearray(json.dumps(plan.to_dict()).encode()), dtype=torch.uint8)


def is_marker(key: object) -> bool:
    """Return whether a name in a state dict is that of the entry."""
    return isinstance(key, str) and key.endswith(_END)


def unmarked(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return a state dict without the entry, and the plan of the entry as plain data.

    Returns:
        The same object and None where there is no entry. An entry that cannot be read has no plan.
    """
    found = next((key for key in state if is_marker(key)), None)
    if found is None:
        return state, None
    rest = type(state)((key, value) for key, value in state.items() if not is_marker(key))  # type: ignore[call-arg]
    if hasattr(state, "_metadata"):
        rest._metadata = state._metadata  # type: ignore[attr-defined]
    try:
        plan = json.loads(bytes(state[found].tolist()))
    except (AttributeError, TypeError, ValueError):
        return rest, None
    return rest, plan if isinstance(plan, dict) else None
