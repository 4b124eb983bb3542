"""Which part of a LightningModule is pruned, and what it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.callbacks.training_data import WAY_OUT, peek
from infoprune.errors import ConfigurationError, InfopruneError, TraceError, nearest
from infoprune.shapes import from_shapes
from infoprune.structure.module_state import attributes_restored

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.structure.tracing.tracer import Inputs

COMPILED = "_orig_mod"
"""Where ``torch.compile(net)`` keeps the net."""


def example_inputs(trainer: pl.Trainer, module: pl.LightningModule, option: Any) -> Inputs | None:
    """What the LightningModule's forward can be run on, before any batch has gone by.

    Args:
        trainer: the Trainer, which has set up its training data.
        module: its LightningModule.
        option: the user's choice, None to look for ``example_input_array`` or into the data.

    Returns:
        None if the data cannot be looked into; then the first batch must do, see :func:`of_batch`.

    Raises:
        ConfigurationError: nothing that was found can serve.
    """
    inputs: Any = from_shapes(option) if option is not None else module.example_input_array
    if inputs is not None:
        inputs = trainer.precision_plugin.convert_input(inputs)
        return tree_map_only(Tensor, lambda t: t.to(trainer.strategy.root_device), inputs)
    try:
        return peek(trainer)
    except InfopruneError:
        raise
    except Exception as error:  # the user's data set, which may know only its own sampler's indices
        raise ConfigurationError(
            f"the training data could not be looked into ({type(error).__name__}: {error}): {WAY_OUT}"
        ) from error


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


def inputs_at(trainer: pl.Trainer, module: nn.Module, target: nn.Module, inputs: Inputs) -> tuple[Inputs | None, int]:
    """What a submodule receives when the module runs on some inputs, and how often it is called."""
    calls: list[Inputs] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_as_inputs(args, kwargs))

    handle = target.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            if isinstance(inputs, Mapping):
                module(**inputs)
            elif isinstance(inputs, (tuple, list)):
                module(*inputs)
            else:
                module(inputs)
    finally:
        handle.remove()
    return (calls[0] if calls else None), len(calls)


def _as_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Arguments of a call, as one kind of example inputs; a mixture of both kinds cannot be written as such."""
    if kwargs and args:
        raise ConfigurationError(
            f"the network is called with {len(args)} positional arguments and the keyword arguments "
            f"{', '.join(kwargs)}; give FilterPruning example_inputs with all of them as a dict"
        )
    return kwargs if kwargs else (args[0] if len(args) == 1 else args)
