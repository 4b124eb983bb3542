"""Decide which channels of equal parts go together, so that every part loses the same number.

``chunk(2)`` asks for halves of equal length, not for equal positions. Tying position i of one half to position i of the
other is right but, where halves are shuffled and halved again, soon binds everything together. So the pairs are chosen
when all else is known: equal positions where these bind nothing more, else partners that keep the units small.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from infoprune.structure.labels.components import Labels


def balanced_pairs(
    a: Labels, b: Labels, roots_of: Callable[[Labels], Labels], signatures: Callable[[], npt.NDArray[np.uint64]]
) -> tuple[Labels, Labels]:
    """Return the labels to unite so that two parts of a dimension always lose equally many.

    Args:
        a: (n,) labels of one part.
        b: (n,) labels of the other.
        roots_of: gives the smallest label of each label's component so far.
        signatures: for each component's smallest label a number that tells which slots it lies in. Components of
            equal signatures make uniform units together.

    Returns:
        Two arrays of equal length: labels to unite with each other.

    >>> none = lambda: np.zeros(8, dtype=np.uint64)
    >>> balanced_pairs(np.array([0, 1]), np.array([2, 3]), np.copy, none)
    (array([0, 1]), array([2, 3]))

    Runs of four, cut in the middle of the second run: the outer runs go together and the inner one is balanced already.

    >>> runs = np.repeat([0, 1, 2], 4)
    >>> balanced_pairs(runs[:6], runs[6:], np.copy, none)
    (array([0]), array([2]))
    """
    roots_a, roots_b = roots_of(a), roots_of(b)
    if _is_matching(roots_a, roots_b):
        return a, b
    roots, flat = np.unique(np.concatenate([roots_a, roots_b]), return_inverse=True)
    surplus = np.bincount(flat[: len(a)], minlength=len(roots)) - np.bincount(flat[len(a) :], minlength=len(roots))
    more, less = np.flatnonzero(surplus > 0), np.flatnonzero(surplus < 0)
    kind = signatures()[roots]
    pairs: list[tuple[int, int]] = []
    for same_kind in (True, False):
        pairs += _take_pairs(surplus, more, less, kind if same_kind else np.zeros_like(kind))
    pairs += _merge_rest(surplus, more, less)
    chosen = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return roots[chosen[:, 0]], roots[chosen[:, 1]]


def _is_matching(a: Labels, b: Labels) -> bool:
    """Return whether equal positions pair every component with exactly one other, or with itself."""
    base = max(int(a.max()), int(b.max())) + 1
    pairs = np.unique((a * base + b)[a != b])
    return len(np.unique([*divmod(pairs, base)])) == 2 * len(pairs)


def _take_pairs(
    surplus: npt.NDArray[np.int64], more: Labels, less: Labels, kind: npt.NDArray[np.uint64]
) -> list[tuple[int, int]]:
    """Pair, in order, components of one kind whose surpluses cancel; both are balanced from then on."""
    waiting: dict[tuple[int, int], list[int]] = {}
    for j in less[::-1].tolist():
        waiting.setdefault((int(kind[j]), -int(surplus[j])), []).append(j)
    pairs = []
    for i in more.tolist():
        partners = waiting.get((int(kind[i]), int(surplus[i])))
        if surplus[i] and partners:
            j = partners.pop()
            if surplus[j]:
                surplus[i] = surplus[j] = 0
                pairs.append((i, j))
    return pairs


def _merge_rest(surplus: npt.NDArray[np.int64], more: Labels, less: Labels) -> list[tuple[int, int]]:
    """Chain the remaining components in order, and begin a new chain wherever the surpluses cancel."""
    pairs = []
    too_many, too_few = [i for i in more.tolist() if surplus[i]], [j for j in less.tolist() if surplus[j]]
    i = j = 0
    while i < len(too_many) and j < len(too_few):
        high, low = too_many[i], too_few[j]
        pairs.append((high, low))
        moved = min(surplus[high], -surplus[low])
        surplus[high] -= moved
        surplus[low] += moved
        i += surplus[high] == 0
        j += surplus[low] == 0
    return pairs
