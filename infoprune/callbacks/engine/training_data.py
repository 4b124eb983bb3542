"""Read batches from a fit's training data past the loader: example inputs, calibration and training batches."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)

EXAMPLES = 2
"""How many examples of a batch are kept: enough to tell the batch dimension from one of size 1."""

WAY_OUT = (
    "set example_input_array on the LightningModule, or give FilterPruning example_inputs: a tensor, a tuple of "
    "positional or a dict of keyword arguments of the forward, or a shape such as [1, 3, 32, 32]"
)


def of_batch(batch: Any) -> Tensor:
    """Return the model's input in a training batch: the batch, or its first element as in ``(x, y)``.

    Args:
        batch: a batch as the training step receives it.

    Returns:
        Its first examples.

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


def peek(trainer: pl.Trainer) -> Any:
    """Return the first training examples as a batch, read past the loader, whose order does not change.

    Args:
        trainer: the Trainer of a fit.

    Returns:
        The batch on the training device; None if the data does not allow that: a stream, a loader that is no
        DataLoader, or a data set that knows only the indices of its own sampler.
    """
    try:
        batch = _first_examples(trainer)
        if batch is None:
            return None
        return _received(trainer, batch)
    except Exception as error:  # of the user's data set; the first batch of training will do
        log.debug("The training data could not be looked into: %s", error)
        return None


def peek_validation(trainer: pl.Trainer) -> list[Any]:
    """Return the first examples of each validation loader as a batch, read past the loader.

    Args:
        trainer: the Trainer of a fit.

    Returns:
        A batch on the training device for each loader; None in place of one that does not allow that.
    """
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    return [_examples_of(trainer, loader) for loader in loaders]


def _examples_of(trainer: pl.Trainer, loader: Any) -> Any:
    try:
        batch = _first_of(loader)
        return None if batch is None else _received(trainer, batch)
    except Exception as error:  # of the user's data set
        log.debug("The validation data could not be looked into: %s", error)
        return None


def _received(trainer: pl.Trainer, batch: Any) -> Any:
    """Return a batch as the training step receives it, after the hooks around its way to the device."""
    batch = trainer.lightning_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch))
    return trainer.strategy.batch_to_device(batch)


def _first_examples(trainer: pl.Trainer) -> Any:
    loader = trainer.train_dataloader
    sample = getattr(getattr(trainer, "datamodule", None), "calibration_batches", None)
    if sample is not None:
        return next(iter(sample(EXAMPLES)))
    return _first_of(loader)


def _first_of(loader: Any) -> Any:
    """Return the first examples of a loader's data set; None if it cannot be looked into."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:  # the data set makes its own batches
        return loader.collate_fn(dataset[0])
    return loader.collate_fn([dataset[i] for i in range(min(EXAMPLES, len(dataset)))])


def no_batch_yet() -> ConfigurationError:
    """Return the error for an event before the first batch, if only a batch could give an example input."""
    return ConfigurationError(
        "an example input cannot be taken from the training data before the first batch, because it is not a "
        f"DataLoader over an indexable data set: {WAY_OUT}"
    )


class _Sample:
    """Evenly spaced examples of an indexable data set, in batches on the training device, any number of times."""

    def __init__(self, trainer: pl.Trainer, loader: DataLoader[Any], count: int) -> None:
        self._trainer = trainer
        self._loader = loader
        dataset: Any = loader.dataset
        count = min(count, len(dataset))
        self._indices = [i * len(dataset) // count for i in range(count)]

    def __iter__(self) -> Iterator[Any]:
        size = self._loader.batch_size or 1
        for start in range(0, len(self._indices), size):
            batch = self._loader.collate_fn([self._loader.dataset[i] for i in self._indices[start : start + size]])
            yield _received(self._trainer, batch)


def calibration_batches(trainer: pl.Trainer, count: int) -> Iterable[Any]:
    """Return a fixed sample of training examples, the same on every process, read past the training loader.

    Args:
        trainer: the Trainer of a fit.
        count: number of examples.

    Raises:
        ConfigurationError: the training data is a stream or no DataLoader, and the datamodule has no
            ``calibration_batches``.
    """
    sample = getattr(getattr(trainer, "datamodule", None), "calibration_batches", None)
    if sample is not None:
        batches: Iterable[Any] = sample(count, device=trainer.strategy.root_device)
        return batches
    if _can_be_looked_into(trainer):
        return _Sample(trainer, trainer.train_dataloader, count)  # type: ignore[arg-type]
    raise ConfigurationError(
        "the criterion looks at training images, but the training data is not a DataLoader over an indexable data set: "
        "give the datamodule a method calibration_batches(n_images, device=...), or choose a criterion without data"
    )


def training_batches(trainer: pl.Trainer, count: int, option: str = "recalibration_batches") -> Iterable[Any]:
    """Return a fixed sample of training batches, of the same size and with the same transforms as in training.

    Args:
        trainer: the Trainer of a fit.
        count: number of batches.
        option: the option that asks for them, for messages.

    Raises:
        ConfigurationError: the training data is a stream or no DataLoader, and the datamodule has no
            ``calibration_batches`` that augments.
        DataError: the datamodule has fewer images.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    sample = getattr(datamodule, "calibration_batches", None)
    if sample is not None and {"augment", "batch_size"} <= set(inspect.signature(sample).parameters):
        size = datamodule.batch_size
        batches: Iterable[Any] = sample(
            count * size, batch_size=size, augment=True, device=trainer.strategy.root_device
        )
        return batches
    if _can_be_looked_into(trainer):
        loader: Any = trainer.train_dataloader
        return _Sample(trainer, loader, count * (loader.batch_size or 1))
    raise ConfigurationError(
        f"{option}={count} takes batches from the training data, which is no DataLoader over an indexable "
        "data set: give the datamodule a method calibration_batches(n_images, batch_size=..., augment=..., device=...) "
        f"and a batch_size, or leave {option} out"
    )


def _can_be_looked_into(trainer: pl.Trainer) -> bool:
    loader: Any = trainer.train_dataloader
    indexable = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return indexable and loader.batch_sampler is not None
