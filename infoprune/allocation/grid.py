"""The widths that a channel group may take."""

from __future__ import annotations

from dataclasses import dataclass

from infoprune.errors import ConfigurationError

# A ratio such as 0.9 of 10 leaves 0.99999... of a unit in floating point; it means 1.
SLACK = 1e-9


@dataclass(frozen=True)
class WidthGrid:
    """The permitted widths of a group: multiples of a step from a lowest width on, and the whole group.

    Args:
        size: All units of the group.
        step: Widths are multiples of it (except ``size`` itself).
        least: Widths are not below it.
        original: Units that ratios refer to; ``size`` unless the group was pruned before.

    Example:
        >>> WidthGrid(size=20, step=8).lowest, WidthGrid(size=20, step=8).at(0.5), WidthGrid(size=20, step=8).up(16)
        (8, 8, 20)
    """

    size: int
    step: int = 1
    least: int = 1
    original: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("round_to", self.step), ("min_width", self.least)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, got {value!r}")

    @property
    def lowest(self) -> int:
        """The smallest width."""
        return min(self.size, -(-self.least // self.step) * self.step)

    def at(self, share: float) -> int:
        """Return the width for a kept share of the original units: int(share x original), then the nearest multiple.

        Args:
            share: Kept share of the original units, in [0, 1].
        """
        wanted = int((self.original or self.size) * share + SLACK)
        if wanted >= self.size:
            return self.size
        multiple = (2 * wanted + self.step) // (2 * self.step) * self.step
        return max(self.lowest, min(self.size, multiple))

    def up(self, width: int) -> int:
        """Return the next width above, or the same if there is none.

        Args:
            width: A width of the grid.
        """
        return min(self.size, (width // self.step + 1) * self.step)

    def down(self, width: int) -> int:
        """Return the next width below, or the same if there is none.

        Args:
            width: A width of the grid.
        """
        return max(self.lowest, (width - 1) // self.step * self.step)
