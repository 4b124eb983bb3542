"""Arrays of labels, and the connected components of the graphs whose edges they list."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = npt.NDArray[np.int64]
"""One integer for each index of a dimension."""

LONG = 1 << 16
"""Arrays of so many labels hold most of them many times: those of a map of scores that was flattened, say."""

Computed = TypeVar("Computed")


class PerArray(Generic[Computed]):
    """Compute a value from an array once and cache it for as long as the array exists.

    Args:
        compute: what is computed from an array.
    """

    def __init__(self, compute: Callable[[Labels], Computed]) -> None:
        self._compute = compute
        self._noted: dict[int, tuple[weakref.ref[Labels], Computed]] = {}

    def __call__(self, labels: Labels) -> Computed:
        """Return the value for an array, computed on the first call."""
        key = id(labels)
        found = self._noted.get(key)
        if found is None:
            reference = weakref.ref(labels, lambda _: self._noted.pop(key, None))
            found = self._noted[key] = reference, self._compute(labels)
        return found[1]


def _each_once(labels: Labels) -> Labels:
    there = np.zeros(labels.max() + 2, dtype=bool)
    there[labels] = True  # the last entry stands for OUTSIDE, -1
    each = np.flatnonzero(there)
    each[each == len(there) - 1] = -1
    return each


def _span(labels: Labels) -> tuple[int, int]:
    high = int(labels.max()) if len(labels) else -1
    # As an unsigned number OUTSIDE, -1, is the largest, so that the smallest label is found without a copy.
    return (int(labels.view(np.uint64).min()), high) if high >= 0 else (0, -1)


_noted_each_once, _noted_span = PerArray(_each_once), PerArray(_span)


def distinct(labels: Labels) -> Labels:
    """Return labels without repetitions (short arrays as they are); cached for as long as the array exists.

    Args:
        labels: (n,) labels, which nobody changes afterwards.

    Example:
        >>> distinct(np.array([2, 1, 2])).tolist(), distinct(np.repeat([2, 1], LONG)).tolist()
        ([2, 1, 2], [1, 2])
    """
    return labels if len(labels) < LONG else _noted_each_once(labels)


def share_labels(a: Labels, b: Labels) -> bool:
    """Return whether two arrays share a label other than `OUTSIDE`.

    Args:
        a: (n,) labels.
        b: (m,) labels.

    Example:
        >>> share_labels(np.array([-1, 3, 4]), np.array([-1, 4])), share_labels(np.array([-1, 3]), np.array([-1, 4]))
        (True, False)
        >>> share_labels(np.array([3, 4]), np.array([3, 5]))
        True
    """
    if len(a) and len(b) and a[0] == b[0] >= 0:  # as of a part, or of what was repeated
        return True
    (low, high), (other_low, other_high) = _noted_span(a), _noted_span(b)
    if low > other_high or other_low > high:  # quick, and enough for most pairs
        return False
    inside = distinct(a)
    return bool(np.isin(inside[inside >= 0], distinct(b)).any())


def ranges(starts: Labels, sizes: Labels) -> Labels:
    """Return ranges of whole numbers, concatenated.

    Args:
        starts: (n,) first number of each range.
        sizes: (n,) length of each range.

    Returns:
        (sum of sizes,) the numbers.

    >>> ranges(np.array([5, 0]), np.array([3, 2])).tolist()
    [5, 6, 7, 0, 1]
    """
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def joined(component: Labels, a: Labels, b: Labels) -> Labels:
    """Return the components, given by their smallest members, once edges ``a[i] - b[i]`` join some of them.

    Args:
        component: (nodes,) smallest member of each node's component.
        a: (edges,) one end of each edge.
        b: (edges,) the other end.

    Returns:
        (nodes,) smallest member of each node's new component.

    >>> joined(np.array([0, 0, 2, 3, 3]), np.array([1]), np.array([4])).tolist()
    [0, 0, 2, 0, 0]
    """
    a, b = component[a], component[b]
    touched = np.zeros(len(component), dtype=bool)
    touched[a] = touched[b] = True
    nodes = np.flatnonzero(touched)  # few of all, so these alone take part in the search
    new = np.arange(len(component), dtype=np.int64)
    new[nodes] = np.arange(len(nodes))
    new[nodes] = nodes[connected(new[a], new[b], len(nodes))]
    return new[component]


def connected(a: Labels, b: Labels, size: int) -> Labels:
    """Find the connected components of a graph with edges ``a[i] - b[i]``; return each node's smallest member.

    Each round takes minimum labels along edges and shortens the chains of pointers, until nothing changes. The number
    of rounds is logarithmic in the longest chain, and each round is a few vectorised passes.

    Args:
        a: (edges,) one end of each edge.
        b: (edges,) the other end.
        size: Number of nodes.

    Returns:
        (size,) the smallest member of each node's component.

    >>> connected(np.array([0, 3]), np.array([2, 2]), 5).tolist()
    [0, 1, 0, 0, 4]
    """
    parent = np.arange(size, dtype=np.int64)
    while len(a):
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parent
