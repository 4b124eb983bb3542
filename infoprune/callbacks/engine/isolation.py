"""`isolated`: draw random numbers and take batches without changing what training draws and takes afterwards."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infoprune.random_state import RewindableIterator, restorers
from infoprune.structure.surgery.held import own_attributes

DEPTH = 8
"""Objects of the data are followed so deep: a subset of a data set, its transforms, one of them, its generator."""

LARGEST = 1000
"""Containers with more elements hold data, not generators."""

_PASSED_OVER = (str, bytes, int, float, type(None), type, ModuleType, Tensor, nn.Module, pl.Trainer)
"""Objects of these types are not looked into."""


@contextmanager
def isolated(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Restore afterwards all random generators, and the iterators that a LightningModule holds.

    Generators are the global ones, and those that data sets, ``collate_fn`` and the datamodule hold, as augmentations
    do. What a training step takes from an iterator of the module, such as one over unlabelled images, it gets again.

    Args:
        trainer: the Trainer of a fit.
        module: its LightningModule.
    """
    with ExitStack() as stack:
        stack.enter_context(isolate_rng(trainer.strategy.root_device.type == "cuda"))
        for restore in restorers(_parts(_of_data(trainer))):
            stack.callback(restore)
        stack.enter_context(_iterators_rewound(module))
        yield


def _of_data(trainer: pl.Trainer) -> Iterator[Any]:
    """Yield what makes the examples of a fit: data sets, collate functions, the datamodule."""
    yield getattr(trainer, "datamodule", None)
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders):
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            if isinstance(loader, DataLoader):
                yield from (loader.dataset, loader.collate_fn)


def _parts(roots: Iterable[Any]) -> Iterator[Any]:
    """Yield some objects and what they hold, each once."""
    seen: set[int] = set()
    waiting = [(root, 0) for root in roots]
    while waiting:
        value, depth = waiting.pop()
        if id(value) in seen or isinstance(value, _PASSED_OVER):
            continue
        seen.add(id(value))
        yield value
        if depth < DEPTH:
            waiting += [(inner, depth + 1) for inner in _inside(value)]


def _inside(value: Any) -> Iterator[Any]:
    """Yield the elements and attributes of an object, and what a function of the code has bound."""
    if isinstance(value, dict | list | tuple | set | deque):
        if len(value) <= LARGEST:
            yield from value.values() if isinstance(value, dict) else value
        return
    yield from getattr(value, "__dict__", {}).values()
    yield getattr(value, "__self__", None)
    if isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # of a variable that has no value yet
            yield cell.cell_contents


@contextmanager
def _iterators_rewound(module: nn.Module) -> Iterator[None]:
    """Set the iterators in a module's attributes, and in lists and dicts there, back at the end of the block."""
    held = [(slots, key, value) for slots, key, value in _slots_of(module) if _is_iterator(value)]
    recorded = [value if isinstance(value, RewindableIterator) else RewindableIterator(value) for *_, value in held]
    for (slots, key, _), iterator in zip(held, recorded, strict=True):
        slots[key] = iterator
        iterator.record()
    try:
        yield
    finally:
        for (slots, key, value), iterator in zip(held, recorded, strict=True):
            # What was not taken from needs no stand-in.
            slots[key] = iterator if iterator.stop() else value


def _slots_of(module: nn.Module) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the attributes of a module and the elements of lists and dicts there: (container, key, value)."""
    for part, name, value in list(own_attributes(module)):
        yield vars(part), name, value
        if isinstance(value, list | dict) and len(value) <= LARGEST:
            keys = list(value) if isinstance(value, dict) else range(len(value))
            yield from ((value, key, value[key]) for key in keys)


def _is_iterator(value: Any) -> bool:
    return isinstance(value, Iterator) and not isinstance(value, nn.Module | io.IOBase)
