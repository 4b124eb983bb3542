"""`isolated`: draw random numbers and take batches without changing what training draws and takes afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import GeneratorType, ModuleType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from infoprune.callbacks.engine.outside_state import OutsideState, bound_to
from infoprune.random_state import RewindableIterator, restorers
from infoprune.structure.surgery.held import own_attributes

DEPTH = 8
"""Objects of the data are followed so deep: a subset of a data set, its transforms, one of them, its generator."""

LARGEST = 1000
"""Containers with more elements hold data, not generators."""

MOST = 5_000
"""No more objects are looked at, those near the data set first: that takes about a hundredth of a second."""

_PASSED_OVER = (str, bytes, int, float, type(None), type, ModuleType, Tensor, nn.Module, pl.Trainer)
"""Objects of these types are not looked into."""


@contextmanager
def isolated(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Restore afterwards all random generators, and the iterators, arrays and counters that a LightningModule holds.

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
        stack.callback(OutsideState(module).restore_numbers)  # which a step changes that is itself traced
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
    waiting = deque((root, 0) for root in roots)
    while waiting and len(seen) < MOST:
        value, depth = waiting.popleft()
        if id(value) in seen or issubclass(type(value), _PASSED_OVER):
            continue
        seen.add(id(value))
        yield value
        if depth < DEPTH and len(waiting) < MOST:
            with suppress(RuntimeError):  # another thread changes it
                waiting.extend([(inner, depth + 1) for inner in _inside(value)])


def _inside(value: Any) -> Iterator[Any]:
    """Yield the elements and attributes of an object, and what a function of the code has bound."""
    kind = type(value)  # past code of the object's own, which may answer anything
    if issubclass(kind, dict | list | tuple | set | deque):
        plain = next(base for base in (dict, list, tuple, set, deque) if issubclass(kind, base))
        if plain.__len__(value) <= LARGEST:
            yield from dict.values(value) if plain is dict else plain.__iter__(value)
    with suppress(AttributeError):
        yield from object.__getattribute__(value, "__dict__").values()
    yield from bound_to(value)


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
    """Return whether a value is an iterator of Python's or of a loader; objects of a project are restored as such."""
    kinds = (GeneratorType, _BaseDataLoaderIter, RewindableIterator)
    plain = type(value).__module__ in ("builtins", "itertools")
    return isinstance(value, kinds) or (plain and isinstance(value, Iterator))
