"""The `FilterPruning` callback that another callback works with."""

from __future__ import annotations

import lightning.pytorch as pl

from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.errors import ConfigurationError


def find_pruning(trainer: pl.Trainer, module: str | None, who: str) -> FilterPruning:
    """The Trainer's `FilterPruning`; where it has several, the one for a part of the model.

    Args:
        trainer: the Trainer.
        module: the ``module`` option of the one that is meant, None if there is but one.
        who: the callback that asks, for messages.

    Raises:
        ConfigurationError: there is none, or not clearly one.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, FilterPruning)]  # type: ignore[attr-defined]
    if not found:
        raise ConfigurationError(
            f"{who} works with FilterPruning, and the Trainer has none among its callbacks: add one"
        )
    if len(found) > 1 or module is not None:
        chosen = [callback for callback in found if callback.module == module]
        if len(chosen) != 1:
            parts = ", ".join(repr(callback.module) for callback in found)
            raise ConfigurationError(
                f"{who}: module={module!r} does not say which FilterPruning is meant; there is {parts}"
            )
        return chosen[0]
    return found[0]
