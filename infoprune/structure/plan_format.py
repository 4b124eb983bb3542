"""Read and write the plain form of a plan; every field is checked before it takes memory.

A plan may come from a stranger. Runs of indices are short to write (``"0-9999999"``), so their ends are compared with
the size of the dimension first, and all indices of a plan together are limited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from infoprune.errors import PlanError

FORMAT = 1

MAX_INDICES = 1 << 23
"""The most indices that a plan may remove, runs that are written alike counted once: about 300 MB in memory."""

MAX_SIZE = (1 << 31) - 1
"""The largest size of a dimension of a layer that is pruned."""

MAX_NAME = 1000
"""The most characters of a tensor's or attribute's name."""


class PlanFields(NamedTuple):
    """The fields of a :class:`PruningPlan`."""

    removed: dict[str, dict[int, tuple[int, ...]]]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, tuple[int, int]]
    caches: tuple[str, ...]


def read_fields(data: Any) -> PlanFields:
    """Read the plain form of a plan.

    Args:
        data: what JSON, YAML or a checkpoint holds; may be damaged.

    Returns:
        The plan's fields, checked.

    Raises:
        PlanError: the data is not a plan; names what is wrong.
    """
    if not isinstance(data, Mapping) or "tensors" not in data:
        raise PlanError("this is not a pruning plan: it has no 'tensors'")
    if data.get("format") != FORMAT:
        raise PlanError(f"the plan has format {data.get('format')!r:.60}, this version of infoprune reads {FORMAT}")
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    ranges = _Ranges()
    try:
        for tensor, entry in data["tensors"].items():
            shape = shapes[_name(tensor)] = tuple(_size(n) for n in entry["shape"])
            removed[tensor] = {}
            for dim, text in entry["removed"].items():
                if not 0 <= int(dim) < len(shape):
                    raise PlanError(f"the plan cuts dimension {int(dim)} of {tensor}, which has shape {shape}")
                removed[tensor][int(dim)] = ranges.read(text, shape[int(dim)], f"dimension {dim} of {tensor}")
        attributes = {_name(k): (_size(v[0]), _size(v[1])) for k, v in data.get("attributes", {}).items()}
        caches = tuple(_name(path) for path in data.get("caches", ()))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise PlanError(f"the pruning plan is malformed: {type(error).__name__}: {error!s:.200}") from error
    return PlanFields(removed, shapes, attributes, caches)


def write_ranges(indices: Iterable[int]) -> str:
    """Write sorted indices as runs.

    Args:
        indices: whole numbers, sorted, each once.

    Example:
        >>> write_ranges([0, 1, 2, 5, 8, 9])
        '0-2,5,8-9'
    """
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class _Ranges:
    """Read the runs that :func:`write_ranges` wrote; equal texts give one shared tuple."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, int], tuple[int, ...]] = {}
        self._left = MAX_INDICES

    def read(self, text: str, size: int, where: str) -> tuple[int, ...]:
        """Return the indices that a text lists.

        Args:
            text: runs of indices.
            size: the size of the dimension that they are from.
            where: the dimension, in words.
        """
        if (text, size) not in self._read:
            self._read[text, size] = tuple(self._indices(text, size, where))
        return self._read[text, size]

    def _indices(self, text: str, size: int, where: str) -> list[int]:
        indices: list[int] = []
        for run in filter(None, text.split(",")):
            first, dash, last = run.partition("-")
            found = range(int(first), int(last if dash else first) + 1)
            if found.stop <= found.start:
                raise ValueError(f"the range {run!r:.60} is empty")
            if found.stop > size:
                raise PlanError(f"the plan removes index {found.stop - 1} of {where}, which has {size}")
            if indices and found.start <= indices[-1]:
                raise PlanError(f"the plan's indices for {where} are repeated or not in order")
            self._left -= found.stop - found.start
            if self._left < 0:
                raise PlanError(f"the plan removes more than {MAX_INDICES:,} indices, with those of {where}")
            indices.extend(found)
        return indices


def _name(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"expected a name, got {text!r:.60}")
    if not text.isprintable() or len(text) > MAX_NAME:
        raise ValueError(f"{text!r:.60} is no name: it is longer than {MAX_NAME} characters or cannot be printed")
    return text


def _size(number: Any) -> int:
    if type(number) is not int:
        raise TypeError(f"expected a whole number, got {number!r:.60}")
    if not 0 <= number <= MAX_SIZE:
        raise ValueError(f"expected a size from 0 to {MAX_SIZE:,}, got {number!r:.60}")
    return number
