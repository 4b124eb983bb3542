"""Loss curves: the measured loss of cutting each channel group, from which any budget is solved."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.files import written_whole

FORMAT = 1


@dataclass(frozen=True)
class Round:
    """The losses of single cuts in a model whose groups have given widths.

    Attributes:
        widths: group name -> units that the model has.
        loss: the loss at these widths.
        curves: group name -> width below that of the model -> loss if this group alone is cut to it.
    """

    widths: Mapping[str, int]
    loss: float
    curves: Mapping[str, Mapping[int, float]]

    def added(self, name: str, width: float) -> float:
        """Return the loss that cutting one group to a width adds, interpolated between the measured widths.

        The square root of the loss is taken as linear in the width, since small changes cost their square. More cannot
        cost less: a measured loss counts as at least that of every larger width.

        Args:
            name: The group.
            width: Units that it keeps.

        Returns:
            Nats, or the unit of the user's ``evaluate``.

        >>> round(Round({"a": 8}, 0.0, {"a": {4: 0.04}}).added("a", 6), 4)
        0.01
        """
        points = [(0, 0.0), *self._points(name)]  # units that are gone, and the root of what that adds
        gone = max(0.0, self.widths[name] - width)
        place = min(max(bisect_left(points, (gone, -1.0)), 1), len(points) - 1)
        if place == 0:
            return 0.0
        (less, low), (more, high) = points[place - 1], points[place]
        return max(0.0, low + (high - low) * (gone - less) / (more - less)) ** 2

    def matters(self, name: str) -> bool:
        """Return whether any cut of a group that was measured costs anything.

        Args:
            name: The group.
        """
        return any(self.curves.get(name, {}).values())

    def _points(self, name: str) -> list[tuple[int, float]]:
        highest, points = 0.0, []
        for width, loss in sorted(self.curves.get(name, {}).items(), reverse=True):
            highest = max(highest, math.sqrt(max(0.0, loss - self.loss)))
            points.append((self.widths[name] - width, highest))
        return points


@dataclass(frozen=True)
class LossCurves:
    """Rounds of measurements, from the whole model down to narrow ones.

    Attributes:
        rounds: Each with smaller widths than the one before.
        unit: The unit of the losses, in words.
        images: How many images they were measured on.
    """

    rounds: tuple[Round, ...]
    unit: str = ""
    images: int = 0

    def estimate(self, widths: Mapping[str, int]) -> float:
        """Return the expected loss at some widths: the loss of the nearest wider round plus that of each further cut.

        Several cuts together cost more than the sum of single cuts, so without rounds near ``widths`` it is too low.

        Args:
            widths: Group name -> units that it keeps.

        >>> curves = LossCurves((Round({"a": 8, "b": 8}, 0.0, {"a": {4: 0.04}, "b": {4: 0.01}}),))
        >>> round(curves.estimate({"a": 4, "b": 4}), 4)
        0.05
        """
        above = [one for one in self.rounds if all(one.widths.get(name, 0) >= width for name, width in widths.items())]
        one = (above or list(self.rounds[:1]))[-1]
        return one.loss + sum(one.added(name, width) for name, width in widths.items() if name in one.widths)

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise a ConfigurationError unless these are curves of a model with groups of these sizes.

        Args:
            sizes: Group name -> number of units.
        """
        measured = self.rounds[0].widths
        for name, size in sizes.items():
            if measured.get(name) != size:
                raise ConfigurationError(
                    f"the loss curves were measured on another model: group {name} has {size} units here, "
                    f"{measured.get(name, 'none')} there; measure this model"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return primitives only."""
        rounds = [
            {
                "widths": dict(one.widths),
                "loss": one.loss,
                "curves": {name: {str(w): loss for w, loss in curve.items()} for name, curve in one.curves.items()},
            }
            for one in self.rounds
        ]
        return {"format": FORMAT, "unit": self.unit, "images": self.images, "rounds": rounds}

    @classmethod
    def from_dict(cls, data: Any) -> LossCurves:
        """Return the curves that :meth:`to_dict` wrote; raise a CheckpointError for any other data.

        Args:
            data: plain data.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise CheckpointError(f"these are no loss curves of format {FORMAT}")
        try:
            rounds = tuple(
                Round(
                    {str(name): int(width) for name, width in one["widths"].items()},
                    float(one["loss"]),
                    {
                        str(name): {int(w): float(loss) for w, loss in curve.items()}
                        for name, curve in one["curves"].items()
                    },
                )
                for one in data["rounds"]
            )
            if not rounds:
                raise ValueError("there is no round")
            return cls(rounds, str(data["unit"]), int(data["images"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the loss curves are damaged: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the curves as JSON; raises CheckpointError where the file cannot be written.

        Args:
            path: the file; an old one is replaced.
        """
        try:
            with written_whole(path) as scratch:
                scratch.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write the loss curves {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> LossCurves:
        """Read a file of :meth:`save`; raise a CheckpointError that names the file if it cannot be read.

        Args:
            path: the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, ValueError, CheckpointError) as error:
            raise CheckpointError(f"cannot read the loss curves {path}: {error}") from error
