"""Budgets: the cost that a pruned model may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from infoprune.errors import ConfigurationError
from infoprune.registry import check_choice

if TYPE_CHECKING:
    from infoprune.cost import Cost
    from infoprune.structure import Structure

KINDS = ("macs", "params", "latency")

Widths = Mapping[str, int]

UnitCosts = Callable[[Widths], Mapping[str, float]]
"""A function from widths to the cost of one unit of each group at these widths."""


@dataclass(frozen=True)
class Budget:
    """A cost and the fraction of it that stays.

    Args:
        kind: ``"macs"``, ``"params"`` or ``"latency"``.
        keep: Fraction of the original cost that stays, in (0, 1].

    Raises:
        ConfigurationError: unknown kind, or ``keep`` outside (0, 1].

    Example:
        >>> Budget("macs", 0.5)
        Budget(kind='macs', keep=0.5)
    """

    kind: str
    keep: float

    def __post_init__(self) -> None:
        check_choice("budget", "kind", self.kind, KINDS)
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise ConfigurationError(
                f"budget: the fraction of {self.kind} to keep must be in (0, 1], got {self.keep!r} (0.5 or '50%': half"
                + (f"; numbers of {self.kind} start at {ABSOLUTE:,})" if self.kind != "latency" else ")")
            )


ABSOLUTE = 1000
"""From here on a budget of MACs or parameters is a number of them, not a share."""


def is_absolute(kind: str, value: object) -> bool:
    """Return whether a budget is a number of MACs or parameters.

    Args:
        kind: ``"macs"``, ``"params"`` or ``"latency"``.
        value: The budget as given.
    """
    return kind in ("macs", "params") and isinstance(value, (int, float)) and value >= ABSOLUTE


def as_share(value: object) -> object:
    """Read ``"60%"`` as 0.6 and ``"5e6"`` as a number; everything else is returned as it is.

    Args:
        value: A budget or share as a user gives it.

    >>> as_share("60%"), as_share(200e6)
    (0.6, 200000000.0)
    """
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("%").strip()) / (100 if value.endswith("%") else 1)
    except ValueError:
        return value  # whoever checks the range refuses it


def check_filters(filters: object) -> None:
    """Refuse a share of filters to keep that is no number in (0, 1].

    Args:
        filters: the option, text such as ``"60%"`` already converted.
    """
    if isinstance(filters, bool) or not isinstance(filters, (int, float)) or not 0 < filters <= 1:
        raise ConfigurationError(f"filters must be in (0, 1], got {filters!r}; it is the share of filters to keep")


def check_amount(amount: float) -> None:
    """Refuse an amount that is no number in [0, 1).

    Args:
        amount: the share of units to remove.
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < 1:
        raise ConfigurationError(f"amount must be in [0, 1), got {amount!r}; it is the share of filters to remove")


def cost_share(structure: Structure, kind: str, reference: Cost | None = None) -> Callable[[Widths], float]:
    """Return a function from widths to the share of the original MACs or parameters that they cost.

    Args:
        structure: Where the widths apply.
        kind: ``"macs"`` or ``"params"``.
        reference: The cost that counts as 1; the cost of ``structure`` as it is by default. In gradual pruning, pass
            the cost of the model before the first event.
    """
    whole = getattr(reference or structure.cost(), kind)
    return lambda widths: getattr(structure.cost(widths), kind) / whole if whole else 0.0


def unit_costs(structure: Structure, kind: str, measure: Callable[[Widths], float] | None = None) -> UnitCosts:
    """Return a function from widths to the cost of one unit of each group at these widths.

    Args:
        structure: Where the widths apply.
        kind: ``"macs"``, ``"params"``, ``"latency"``, or ``"amount"``, where every unit counts alike.
        measure: For latency: share of the original time that widths take. Without it, time goes by MACs.
    """
    if kind == "amount":
        return lambda widths: dict.fromkeys(widths, 1.0)
    if kind == "latency" and measure is not None:
        return partial(_measured_units, measure)
    which = 1 if kind == "params" else 0
    return lambda widths: {name: costs[which] for name, costs in structure.cost_of_units(widths).items()}


def _measured_units(measure: Callable[[Widths], float], widths: Widths) -> dict[str, float]:
    """Return the cost of a unit of each group by finite differences over an eighth of it, since time has steps."""
    whole = measure(widths)
    narrower = {name: max(1, width - max(1, width // 8)) for name, width in widths.items()}
    return {
        name: max(0.0, whole - measure({**widths, name: less})) / max(1, widths[name] - less)
        for name, less in narrower.items()
    }
