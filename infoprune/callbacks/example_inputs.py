"""Finding what to run a network on in order to trace it, without touching the run's data order or random state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, IterableDataset

from infoprune.errors import ConfigurationError, InfopruneError
from infoprune.shapes import from_shapes

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.structure.tracing.tracer import Inputs

EXAMPLES = 2
"""How many examples of a batch are kept: enough to tell the batch dimension from one of size 1."""

WAY_OUT = (
    "set example_input_array on the LightningModule, or give FilterPruning example_inputs: a tensor, a tuple of "
    "positional or a dict of keyword arguments of the forward, or a shape such as [1, 3, 32, 32]"
)


def of_batch(batch: Any) -> Tensor:
    """The model's input in a training batch: the batch if it is a tensor, or its first element, as in ``(x, y)``.

    Returns:
        The first examples of it.

    Raises:
        ConfigurationError: the batch is something else.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, Tensor) and first.dim() > 0:
        return first[:EXAMPLES].detach().clone()
    if isinstance(batch, Mapping):
        found = f"a dict with {', '.join(map(repr, list(batch)[:5]))}"
    elif isinstance(batch, (tuple, list)):
        found = f"a {type(batch).__name__} that begins with a {type(first).__name__}"
    else:
        found = f"a {type(batch).__name__}"
    raise ConfigurationError(f"a training batch is {found}; which part of it the model takes is not clear: {WAY_OUT}")


def peek(trainer: pl.Trainer) -> Tensor | None:
    """The input of the first training examples, fetched past the loader, so that its order is left alone.

    Returns:
        None if the data does not allow that: a stream, or a loader that is no DataLoader.
    """
    loader = trainer.train_dataloader
    sample = getattr(getattr(trainer, "datamodule", None), "calibration_batches", None)
    if sample is not None:
        return of_batch(next(iter(sample(EXAMPLES)))).to(trainer.strategy.root_device)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:  # the data set makes its own batches
        batch = loader.collate_fn(dataset[0])
    else:
        batch = loader.collate_fn([dataset[i] for i in range(min(EXAMPLES, len(dataset)))])
    batch = trainer.precision_plugin.convert_input(batch)
    return of_batch(trainer.strategy.batch_to_device(batch))


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


def none_yet() -> ConfigurationError:
    """The error for an event before the first batch, where only that could have told what the model takes."""
    return ConfigurationError(
        "an example input cannot be taken from the training data before the first batch, because it is not a "
        f"DataLoader over an indexable data set: {WAY_OUT}"
    )


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restore the random state of PyTorch, NumPy and Python afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


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
