"""Schedules: at which epochs filters are removed, and how much of the cut each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from infoprune.errors import ConfigurationError, nearest

KINDS = ("one_shot", "linear", "cubic", "one_cycle")

ScheduleSpec = Union["Schedule", int, Sequence[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Schedule:
    """Pruning events: at which epochs, and which fraction of the final cut is reached after each.

    Args:
        events: ``(epoch, fraction)`` pairs in order of time. Epochs count from 0 and an event acts at the start of
            its epoch. Fractions rise to at most 1; a final keep of ``b`` makes the kept share after an event
            ``1 - fraction * (1 - b)``.

    Raises:
        ConfigurationError: an epoch is negative or repeated, fractions leave (0, 1] or fall, or there is no event.

    Example:
        >>> Schedule.parse([2, 4, 6, 8]).events
        ((2, 0.25), (4, 0.5), (6, 0.75), (8, 1.0))
        >>> Schedule.parse({"start": 1, "end": 5, "every": 2, "kind": "linear"}).epochs
        (1, 3, 5)
        >>> Schedule.parse(3).events
        ((3, 1.0),)
    """

    events: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.events:
            raise ConfigurationError("the schedule has no event; give at least one epoch, for example [2]")
        for epoch, fraction in self.events:
            if isinstance(epoch, bool) or not isinstance(epoch, int):
                raise ConfigurationError(f"schedule: an epoch must be a whole number, got {epoch!r}")
            if epoch < 0:
                raise ConfigurationError(f"schedule: epoch {epoch} is negative; epochs count from 0")
            if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
                raise ConfigurationError(f"schedule: the fraction at epoch {epoch} must be in (0, 1], got {fraction!r}")
        for (epoch, fraction), (later, more) in zip(self.events, self.events[1:], strict=False):
            if epoch == later:
                raise ConfigurationError(f"schedule: epoch {epoch} is repeated; an epoch holds one event")
            if later < epoch:
                raise ConfigurationError(f"schedule: epoch {later} comes after epoch {epoch}; sort the events")
            if more < fraction:
                raise ConfigurationError(
                    f"schedule: the fraction falls from {fraction:g} at epoch {epoch} to {more:g} at epoch {later}; "
                    "removed filters do not come back"
                )

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of all events."""
        return tuple(epoch for epoch, _ in self.events)

    def fraction_at(self, epoch: int) -> float | None:
        """Return the fraction of the final cut that the event at ``epoch`` reaches; None where there is no event.

        Args:
            epoch: number of the epoch, from 0.
        """
        return dict(self.events).get(epoch)

    def fraction_due(self, epoch: int, after: int = -1) -> float | None:
        """Return the fraction that is to be reached at the start of an epoch; None if no event is due.

        Args:
            epoch: The epoch that starts.
            after: The epoch of the last event that happened. Events that were missed since then, because the callback
                was added to a run later, are executed at once.

        Example:
            >>> schedule = Schedule.parse([2, 4])
            >>> schedule.fraction_due(4), schedule.fraction_due(4, after=4)
            (1.0, None)
        """
        due = [fraction for start, fraction in self.events if after < start <= epoch]
        return due[-1] if due else None

    def check(self, max_epochs: int | None) -> None:
        """Refuse a schedule with an event beyond ``max_epochs``.

        Args:
            max_epochs: of the Trainer; None or negative: unlimited.
        """
        last = self.epochs[-1]
        if max_epochs is not None and max_epochs >= 0 and last >= max_epochs:
            raise ConfigurationError(
                f"the schedule has an event at epoch {last}, but max_epochs is {max_epochs} and the last epoch is "
                f"{max_epochs - 1}; prune earlier or train longer"
            )

    @classmethod
    def parse(cls, spec: ScheduleSpec, max_epochs: int | None = None) -> Schedule:
        """Read a schedule as a config file writes it.

        Args:
            spec: A Schedule; one epoch (the whole cut at once); a list of epochs in any order (equal steps); a list of
                ``[epoch, fraction]`` pairs; or a mapping with ``start``, ``end``, ``every`` (default 1) and ``kind``
                (``"cubic"`` by default, ``"linear"``, ``"one_cycle"``, a function from progress in (0, 1] to the share
                of the cut, or ``"one_shot"``, which needs ``start`` alone). ``one_cycle`` goes slowly at both ends and
                fast between, as Hubens et al., "One-Cycle Pruning" (2021). ``cubic`` is
                the rule of Zhu & Gupta, "To prune, or not to prune" (2017), ``1 - (1 - progress)**3``; their first
                step removes nothing, so the progress of event k of n here is k/n.
            max_epochs: If given, events at or beyond it are an error.

        Raises:
            ConfigurationError: the description is malformed, or an event lies beyond ``max_epochs``.
        """
        if isinstance(spec, Schedule):
            schedule = spec
        elif isinstance(spec, int) and not isinstance(spec, bool):
            schedule = cls(((spec, 1.0),))
        elif isinstance(spec, Mapping):
            schedule = cls(_from_mapping(spec))
        elif isinstance(spec, Sequence) and not isinstance(spec, str):
            schedule = cls(_from_list(spec))
        else:
            raise ConfigurationError(
                f"a schedule is an epoch, a list of epochs, or a mapping with start, end, every and kind; got {spec!r}"
            )
        schedule.check(max_epochs)
        return schedule


def _from_list(spec: Sequence[Any]) -> tuple[tuple[int, float], ...]:
    if all(isinstance(item, int) for item in spec):
        return tuple((epoch, (k + 1) / len(spec)) for k, epoch in enumerate(sorted(spec)))
    if all(isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2 for item in spec):
        return tuple((epoch, fraction) for epoch, fraction in spec)
    raise ConfigurationError(f"schedule: expected whole epochs or [epoch, fraction] pairs, got {list(spec)!r}")


def _from_mapping(spec: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    known = ("start", "end", "every", "kind")
    for key in spec:
        if key not in known:
            raise ConfigurationError(f"the schedule has no option {key!r}{nearest(str(key), known)}")
    kind = spec.get("kind", "cubic")
    if not callable(kind) and kind not in KINDS:
        raise ConfigurationError(f"schedule: unknown kind {kind!r}{nearest(str(kind), KINDS)} ({', '.join(KINDS)})")
    if kind == "one_shot":
        unused = [key for key in ("end", "every") if key in spec]
        if "start" not in spec or unused:
            raise ConfigurationError(f"schedule: kind 'one_shot' takes start alone, got {dict(spec)!r}")
        return ((spec["start"], 1.0),)
    start, end, every = _whole(spec, "start"), _whole(spec, "end"), _whole(spec, "every", default=1)
    if end < start:
        raise ConfigurationError(f"schedule: end {end} comes before start {start}")
    if every < 1:
        raise ConfigurationError(f"schedule: every must be at least 1, got {every}")
    epochs = range(start, end + 1, every)
    progress = [(k + 1) / len(epochs) for k in range(len(epochs))]
    shape: Callable[[float], float] = kind if callable(kind) else SHAPES[kind]
    return tuple(zip(epochs, (shape(share) for share in progress), strict=True))


def _one_cycle(progress: float, steepness: float = 14.0, offset: float = 5.0) -> float:
    """Return a logistic curve, scaled to end at 1."""

    def height(share: float) -> float:
        return 1 / (1 + math.exp(offset - steepness * share))

    return (height(progress) - height(0)) / (height(1) - height(0))


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1 - (1 - progress) ** 3,
    "one_cycle": _one_cycle,
}


def _whole(spec: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = spec.get(key, default)
    if value is None:
        raise ConfigurationError(f"schedule: {key} is missing; give start and end, or a list of epochs")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"schedule: {key} must be a whole number, got {value!r}")
    return value
