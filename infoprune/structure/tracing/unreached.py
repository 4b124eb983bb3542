"""Couple or freeze modules that the example inputs do not reach, such as unused experts.

Their siblings tell what they read and make. Where these agree, an expert that was not reached is cut along with them;
where that cannot be told, what the siblings share with the rest of the model stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from infoprune.structure.labels import Labels

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession


def settle_unreached(session: TraceSession, unused: Sequence[str]) -> tuple[set[str], list[str]]:
    """Couple unreached modules to their siblings, or freeze the channels that they share with the model.

    Args:
        session: the model, with its passes.
        unused: the parameters and buffers that no pass used.

    Returns:
        The tensors that are cut along with a sibling's, and the modules without a sibling that was reached.
    """
    tied: set[str] = set()
    alone = []
    component = session.space.components()
    for name in _unreached(session, set(unused)):
        siblings = [other for other in _siblings(session, name) if not _inside(session, other) & set(unused)]
        if not siblings:
            alone.append(name)
            continue
        outer = [_outer_axes(session, sibling, component) for sibling in siblings]
        if _agree(outer, component):
            for tensor in _inside(session, name):
                counterpart = siblings[0] + tensor.removeprefix(name)
                for own, other in zip(session.labels[tensor], session.labels[counterpart], strict=True):
                    session.space.unite(own, other, -1)
                tied.add(tensor)
        else:
            for axis in (axis for axes in outer for axis in axes):
                session.space.freeze(axis, f"is read or made by {name} too, which the example inputs do not reach")
    return tied, alone


def _unreached(session: TraceSession, unused: set[str]) -> Iterator[str]:
    """Return the modules with tensors of which none was used, without those inside of others."""
    found: set[str] = set()
    for name in session.modules:
        inside = _inside(session, name)
        if name and inside and inside <= unused and not any(name.startswith(f"{other}.") for other in found):
            found.add(name)
            yield name


def _inside(session: TraceSession, module: str) -> set[str]:
    return {
        tensor
        for tensor, entry in session.owned.items()
        if tensor.startswith(f"{module}.") and entry.tensor.is_floating_point() and entry.tensor.dim()
    }


def _siblings(session: TraceSession, name: str) -> Iterator[str]:
    """Return the modules beside one that do the same with tensors of the same shapes."""
    parent, _, child = name.rpartition(".")
    module = session.modules[name]
    holder = session.modules[parent]
    told = type(module).__module__.startswith("torch.nn.")  # a layer of PyTorch's may stand anywhere in its parent
    if told and not isinstance(holder, (nn.ModuleList, nn.ModuleDict)):
        return
    for other, beside in holder.named_children():
        path = f"{parent}.{other}" if parent else other
        if other != child and type(beside) is type(module) and _shapes(session, path) == _shapes(session, name):
            yield path


def _shapes(session: TraceSession, module: str) -> dict[str, tuple[int, ...]]:
    return {t.removeprefix(module): tuple(session.owned[t].tensor.shape) for t in _inside(session, module)}


def _outer_axes(session: TraceSession, module: str, component: Labels) -> list[Labels]:
    """Return the dimensions of a module's tensors that are bound to something outside of it, in the tensors' order."""
    inside = sorted(_inside(session, module))
    axes = [axis for tensor in inside for axis in session.labels[tensor]]
    rest = [axis for tensor in session.labels.keys() - set(inside) for axis in session.labels[tensor]]
    shared = np.unique(component[np.concatenate(rest)]) if rest else np.empty(0, dtype=np.int64)
    return [axis for axis in axes if np.isin(component[axis], shared).any()]


def _agree(outer: Sequence[Sequence[Labels]], component: Labels) -> bool:
    """Return whether all siblings read and make the same channels; of a single one, whether it makes what it reads."""
    bound = [[component[axis].tobytes() for axis in axes] for axes in outer]
    return all(axes == bound[0] for axes in bound) if len(bound) > 1 else len(set(bound[0])) == 1
