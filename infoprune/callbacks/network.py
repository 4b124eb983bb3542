"""Which part of a LightningModule is pruned, and what it is called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.callbacks.example_inputs import inputs_at
from infoprune.errors import ConfigurationError, TraceError, nearest
from infoprune.structure.module_state import attributes_restored

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.structure.tracing.tracer import Inputs

COMPILED = "_orig_mod"
"""Where ``torch.compile(net)`` keeps the net."""


def find_network(
    trainer: pl.Trainer, module: pl.LightningModule, path: str | None, inputs: Inputs, for_network: bool
) -> tuple[str, Inputs]:
    """Choose the network within a LightningModule.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        path: attribute path of the network. None: the only submodule with parameters, if the forward is one call of it;
            else the whole LightningModule.
        inputs: example inputs.
        for_network: ``inputs`` are the network's own, not the LightningModule's.

    Returns:
        The network's path (empty for the LightningModule itself) and its inputs.

    Raises:
        ConfigurationError: there is no such path, or the LightningModule has no forward and several networks.
        TraceError: the LightningModule's forward fails on the inputs.
    """
    has_forward = type(module).forward is not _lightning_module(module).forward
    candidates = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if path is not None:
        path = _checked(module, path)
        if has_forward and not for_network:
            inputs = _inputs_of(trainer, module, path, inputs)
        return path, inputs
    if not has_forward and len(candidates) != 1:
        raise ConfigurationError(
            f"{type(module).__name__} has no forward, so it cannot be traced as a whole: say which network to prune "
            f"with module=... ({', '.join(candidates) or 'it has none with parameters'})"
        )
    if len(candidates) == 1 and not list(module.parameters(recurse=False)):
        only = _checked(module, candidates[0])
        if not has_forward:
            return only, inputs
        received, calls = _run(trainer, module, only, inputs)
        if received is not None and calls == 1:
            return only, received
    return "", inputs


def _lightning_module(module: nn.Module) -> Any:
    """The class LightningModule, of whichever package the module was written against."""
    return next(cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule")


def _checked(module: nn.Module, path: str) -> str:
    """The path, past the wrapper of a compiled network."""
    try:
        network = module.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in module.named_modules() if name]
        raise ConfigurationError(
            f"module={path!r}: {type(module).__name__} has no such submodule{nearest(path, known)}"
        ) from error
    return f"{path}.{COMPILED}" if isinstance(network._modules.get(COMPILED), nn.Module) else path


def _inputs_of(trainer: pl.Trainer, module: nn.Module, path: str, inputs: Inputs) -> Inputs:
    received, _ = _run(trainer, module, path, inputs)
    if received is None:
        raise ConfigurationError(
            f"the forward of {type(module).__name__} does not call {path!r}, so its inputs are not known: give "
            "FilterPruning example_inputs for it"
        )
    return received


def _run(trainer: pl.Trainer, module: nn.Module, path: str, inputs: Inputs) -> tuple[Inputs | None, int]:
    with attributes_restored(module.modules()):
        module.eval()
        try:
            with torch.compiler.set_stance("force_eager"):
                return inputs_at(trainer, module, module.get_submodule(path), inputs)
        except ConfigurationError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise TraceError(
                f"the forward of {type(module).__name__} failed on the example inputs "
                f"({type(error).__name__}: {reason}); they come from FilterPruning's example_inputs, else "
                "example_input_array, else the first element of a training batch: give others where these do not fit"
            ) from error
