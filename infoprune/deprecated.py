"""Options under the names that they had in 0.1; the old names go in 0.3."""

from __future__ import annotations

import warnings
from typing import TypeVar

from infoprune.allocation.budget import check_amount
from infoprune.errors import ConfigurationError

T = TypeVar("T")


def renamed(owner: str, new: str, value: T, old: str, old_value: T | None) -> T:
    """Return the value of an option that may have been given under its old name.

    Args:
        owner: The function or class that takes the option, for messages.
        new: Name of the option.
        value: Its value.
        old: Its old name.
        old_value: The value given under the old name; None if none was.

    Raises:
        ConfigurationError: both are given.

    Example:
        >>> renamed("prune", "recalibration_batches", 8, "recalibrate", None)
        8
    """
    if old_value is None:
        return value
    warnings.warn(f"{owner}: {old} is now called {new}; the old name goes in 0.3", DeprecationWarning, stacklevel=3)
    if value:
        raise ConfigurationError(f"{owner}: {new}={value!r} and {old}={old_value!r} are the same option: give {new}")
    return old_value


def filters_to_keep(owner: str, filters: float | str | None, amount: float | None) -> float | str | None:
    """Return the option ``filters``, the share to keep, which used to be ``amount``, the share to remove.

    Args:
        owner: the function or class that takes the option, for messages.
        filters: the share to keep.
        amount: the share to remove, if given under the old name.

    Raises:
        ConfigurationError: both are given, or the amount is out of range.
    """
    if amount is None:
        return filters
    check_amount(amount)
    keep = round(1 - amount, 12)
    warnings.warn(
        f"{owner}: amount={amount:g} (to remove) is now filters={keep:g} (to keep); amount goes in 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    if filters is not None:
        raise ConfigurationError(f"{owner}: filters={filters} and amount={amount} clash: give filters")
    return keep
