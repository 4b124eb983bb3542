"""`ShapeGuard`: notices when a LightningModule builds its network anew in the middle of a fit."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from infoprune.errors import ConfigurationError
from infoprune.structure import PruningPlan, plan_of

if TYPE_CHECKING:
    import lightning.pytorch as pl


class ShapeGuard:
    """Remembers which LightningModule is fitted and what it has lost.

    A ``configure_model`` that builds its layers whenever it is called would silently undo the pruning.
    """

    def __init__(self) -> None:
        self._plan = PruningPlan()
        self._module: weakref.ref[pl.LightningModule] | None = None

    def start(self, module: pl.LightningModule) -> None:
        """Watch a module from now on."""
        self._module = weakref.ref(module)
        self._plan = plan_of(module)

    def update(self, module: pl.LightningModule) -> None:
        """Take the present shape of the watched module for the right one; other modules do not matter."""
        if self._watches(module):
            self._plan = plan_of(module)

    def check(self, module: pl.LightningModule) -> None:
        """Check that the watched module still has its shape.

        Raises:
            ConfigurationError: it has another one.
        """
        if self._watches(module) and plan_of(module) != self._plan:
            raise ConfigurationError(
                f"{type(module).__name__} no longer has the shape that it was pruned to. Most likely its "
                "configure_model built the network anew, with fresh weights: let it return at once if the network is "
                "there (`if self.net is not None: return`)"
            )

    def _watches(self, module: pl.LightningModule) -> bool:
        return self._module is not None and self._module() is module
