"""Copies within a model (a teacher, averaged weights): which tensor of a copy belongs to which of its original."""

from __future__ import annotations

from collections.abc import Mapping

from infoprune.structure.tensors import OwnedTensor


def copies_of(
    owned: Mapping[str, OwnedTensor], follow: Mapping[str, str | None]
) -> tuple[set[str], list[tuple[str, str]]]:
    """Return the tensors of copies that stay as they are, and pairs of a copy's tensor and its original's.

    Args:
        owned: the model's tensors by name.
        follow: path of each copy within the model -> path of its original, or None for a copy that stays as it is.
    """
    whole: set[str] = set()
    pairs = []
    for copy, original in follow.items():
        if original is None:
            whole |= {name for name in owned if name.startswith(f"{copy}.")}
            continue
        for name in (name for name in owned if name.startswith(f"{original}.")):
            if (twin := copy + name.removeprefix(original)) in owned:
                pairs.append((twin, name))
    return whole, pairs
