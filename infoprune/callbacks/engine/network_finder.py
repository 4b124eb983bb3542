"""Find the part of a LightningModule that is pruned, and its example inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.callbacks.engine.training_data import of_batch
from infoprune.callbacks.engine.training_step import TrainingStep, WatchedStep, as_inputs
from infoprune.errors import ConfigurationError, TraceError, nearest
from infoprune.inputs import Examples, Inputs, call_model, check_form
from infoprune.shapes import from_shapes
from infoprune.structure.module_state import attributes_restored
from infoprune.values import check_input_values

if TYPE_CHECKING:
    import lightning.pytorch as pl

COMPILED = "_orig_mod"
"""Where ``torch.compile(net)`` keeps the net."""


def given_inputs(trainer: pl.Trainer, module: pl.LightningModule, option: Any) -> Inputs | None:
    """Return the user's example inputs on the training device: the option, else ``example_input_array``, else None.

    Args:
        trainer: the Trainer.
        module: the LightningModule.
        option: the ``example_inputs`` of the callback.

    Raises:
        TraceError: they are an iterator or a loader.
        ConfigurationError: they are on the meta device.
    """
    inputs: Any = from_shapes(option) if option is not None else module.example_input_array
    if inputs is None:
        return None
    check_form(inputs)
    check_input_values(inputs)
    inputs = trainer.precision_plugin.convert_input(inputs)
    moved: Inputs = tree_map_only(Tensor, lambda tensor: tensor.to(trainer.strategy.root_device), inputs)
    return moved


class NetworkFinder:
    """Find the network within a LightningModule, and the inputs to trace it with.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        path: attribute path of the network. None: the only submodule with parameters, if the forward is one call of it;
            else the whole LightningModule.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, path: str | None) -> None:
        self._trainer = trainer
        self._module = module
        self._path = None if path is None else self._checked(path)
        self._has_forward = type(module).forward is not _lightning_module(module).forward
        self._parts = [name for name, child in module.named_children() if any(True for _ in child.parameters())]

    def from_inputs(self, inputs: Inputs, for_network: bool = False) -> tuple[str, Inputs]:
        """Choose the network by running the LightningModule's forward.

        Args:
            inputs: example inputs of the LightningModule.
            for_network: ``inputs`` are those of the network at ``path`` instead.

        Returns:
            The network's path (empty for the LightningModule itself) and its inputs.

        Raises:
            ConfigurationError: the LightningModule has no forward and several networks, or its forward does not run
                the network.
            TraceError: the LightningModule's forward fails on the inputs.
        """
        if isinstance(inputs, Examples):
            found = [self.from_inputs(one, for_network) for one in inputs.inputs]
            paths = {path for path, _ in found}
            return (paths.pop(), Examples(*(received for _, received in found))) if len(paths) == 1 else ("", inputs)
        if self._path is not None:
            if not self._has_forward or for_network:
                return self._path, inputs
            received, _ = self._run(self._path, inputs)
            if received is None:
                raise ConfigurationError(
                    f"the forward of {type(self._module).__name__} does not call {self._path!r}, so its inputs are not "
                    "known: give FilterPruning example_inputs for it"
                )
            return self._path, received
        if not self._has_forward and len(self._parts) != 1:
            raise ConfigurationError(
                f"{type(self._module).__name__} has no forward, so it cannot be traced as a whole: say which network "
                f"to prune with module=... ({', '.join(self._parts) or 'it has none with parameters'})"
            )
        only = self._only_part()
        if only is not None:
            if not self._has_forward:
                return only, inputs
            received, calls = self._run(only, inputs)
            if received is not None and calls == 1:
                return only, received
        return "", inputs

    def from_step(self, watched: WatchedStep, batch: Any) -> tuple[str, Inputs]:
        """Choose the network by what the training step called.

        Args:
            watched: what the training step did on a batch.
            batch: that batch.

        Returns:
            The network's path and its inputs. Where the training step runs neither the LightningModule's forward nor
            its only network, the training step itself is what is run.
        """
        if self._path is not None:
            received = watched.inputs_of(self._path)
            return self.from_batch(batch) if received is None else (self._path, received)
        received = watched.inputs_of("")
        if received is not None and self._has_forward:
            return self.from_inputs(received)
        only = self._only_part()
        if only is not None:
            received = watched.inputs_of(only)
            if received is not None:
                return only, received
        try:
            path, inputs = self.from_batch(batch)
            self._run("", inputs if path == "" else of_batch(batch))  # the forward may take something else
            return path, inputs
        except (ConfigurationError, TraceError):
            return "", TrainingStep(batch)

    def from_batch(self, batch: Any) -> tuple[str, Inputs]:
        """Choose the network by running it on the first element of a training batch.

        Args:
            batch: a batch on the training device.

        Returns:
            The network's path and its inputs.
        """
        return self.from_inputs(of_batch(batch))

    def _only_part(self) -> str | None:
        """Return the path of the only submodule with parameters, if all parameters are in one."""
        if len(self._parts) != 1 or list(self._module.parameters(recurse=False)):
            return None
        return self._checked(self._parts[0])

    def _checked(self, path: str) -> str:
        """Return the path, past the wrapper of a compiled network."""
        try:
            network = self._module.get_submodule(path)
        except AttributeError as error:
            known = [name for name, _ in self._module.named_modules() if name]
            raise ConfigurationError(
                f"module={path!r}: {type(self._module).__name__} has no such submodule{nearest(path, known)}"
            ) from error
        return f"{path}.{COMPILED}" if isinstance(network._modules.get(COMPILED), nn.Module) else path

    def _run(self, path: str, inputs: Inputs) -> tuple[Inputs | None, int]:
        """Run the LightningModule in eval mode; return what a submodule received and how often it was called."""
        calls: list[Inputs] = []
        target = self._module.get_submodule(path)
        handle = target.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(as_inputs(args, kwargs)), with_kwargs=True
        )
        try:
            with (
                attributes_restored(self._module.modules()),
                torch.compiler.set_stance("force_eager"),
                torch.no_grad(),
                self._trainer.precision_plugin.forward_context(),
            ):
                self._module.eval()
                call_model(self._module, inputs)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise TraceError(
                f"the forward of {type(self._module).__name__} failed on the example inputs "
                f"({type(error).__name__}: {reason}); they come from FilterPruning's example_inputs, else "
                "example_input_array, else a training batch: give others where these do not fit"
            ) from error
        finally:
            handle.remove()
        return (calls[0] if calls else None), len(calls)


def _lightning_module(module: nn.Module) -> Any:
    """Return the class LightningModule, of whichever package the module was written against."""
    return next(cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule")
