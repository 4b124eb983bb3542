"""Keep the shape of a pruned LightningModule, in memory and in its checkpoints."""

from __future__ import annotations

import weakref
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from infoprune.callbacks._compat import DualNamespaceCallback
from infoprune.callbacks.checkpoint_hooks import hook_checkpoints, mark_checkpoint, unhook_checkpoints
from infoprune.checkpoint import RECORD, attach, plan_record
from infoprune.errors import CheckpointError, ConfigurationError, InfopruneError
from infoprune.structure import PruningPlan, plan_of
from infoprune.values import no_values, without_values


class ShapeGuard:
    """Record which LightningModule is fitted and which plan it was pruned by.

    A ``configure_model`` that builds its layers whenever it is called would silently undo the pruning.
    """

    def __init__(self) -> None:
        self._plan = PruningPlan()
        self._module: weakref.ref[pl.LightningModule] | None = None

    def start(self, module: pl.LightningModule) -> None:
        """Begin to watch a module.

        Args:
            module: the LightningModule that is fitted.
        """
        self._module = weakref.ref(module)
        self._plan = plan_of(module)

    def update(self, module: pl.LightningModule) -> None:
        """Record the present plan of the watched module; other modules are ignored.

        Args:
            module: a LightningModule, just pruned or loaded.
        """
        if self._watches(module):
            self._plan = plan_of(module)

    def check(self, module: pl.LightningModule) -> None:
        """Check that the watched module still has its shape.

        Args:
            module: the module; others than the watched one are ignored.

        Raises:
            ConfigurationError: it has another one.
        """
        if self._watches(module) and plan_of(module) != self._plan:
            raise ConfigurationError(
                f"{type(module).__name__} no longer has the shape that it was pruned to. Most likely its "
                "configure_model built the network again, with new weights: let it return at once if the network is "
                "there (`if self.net is not None: return`)"
            )

    def _watches(self, module: pl.LightningModule) -> bool:
        return self._module is not None and self._module() is module


class ShapeKeepingCallback(DualNamespaceCallback):
    """Base of the callback that prunes: its checkpoints record the shape, and a module of another shape is refused.

    Validation, test and prediction outside of a fit refuse a module that was built again at full width.
    """

    def __init__(self) -> None:
        self._guard = ShapeGuard()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        attach(pl_module)
        hook_checkpoints(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        unhook_checkpoints(pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning moves the model to its device before it calls any hook in which this could be told.
        empty = without_values(pl_module)
        if empty and isinstance(exception, NotImplementedError):
            raise no_values(empty[0]) from exception

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._guard.check(pl_module)
        self._guard.start(pl_module)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._guard.check(pl_module)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._guard.check(pl_module)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._guard.check(pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RECORD] = plan_record(pl_module)
        mark_checkpoint(pl_module, checkpoint)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._guard.update(pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self.take_up(state_dict)
        except InfopruneError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's state of {type(self).__name__} cannot be read ({type(error).__name__}: {error}): "
                "the file is damaged, or was changed. Its weights load with infoprune.load_from_checkpoint"
            ) from error

    def take_up(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            state_dict: from a checkpoint; may be damaged.
        """

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Leave out the module, which belongs to the running process."""
        return {**super().__getstate__(), "_guard": ShapeGuard()}
