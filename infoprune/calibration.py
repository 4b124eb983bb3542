"""Running a model on calibration images without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from infoprune.distributed import process, world_size
from infoprune.errors import DataError, InfopruneError
from infoprune.inputs import Arguments, ModelCall, advice_on, call_model, holds_entries
from infoprune.random_state import undisturbed


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode; train/eval flags and the state of the random generators are restored afterwards.

    Args:
        model: the model.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with undisturbed(*{parameter.device for parameter in model.parameters()}):
            yield
    finally:
        for module, training in flags:
            module.training = training


class TrainingBatches:
    """A LightningDataModule's training batches as a Trainer hands them to the model, the same in every pass.

    Data modules may load bytes and normalise them on the device, in ``on_after_batch_transfer``: so do these batches.
    Of several loaders, a batch is what the Trainer makes of them: a list or mapping of their batches.

    Args:
        datamodule: After ``setup("fit")``.
    """

    def __init__(self, datamodule: Any) -> None:
        self.datamodule = datamodule

    def __iter__(self) -> Iterator[Any]:
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.utilities.combined_loader import CombinedLoader

        kind = type(self.datamodule).__name__
        try:
            loader = self.datamodule.train_dataloader()  # a new one, which begins with the first epoch
        except AttributeError as error:
            raise DataError(
                f"{kind} has no training data yet ({error}): call its prepare_data() and "
                'setup("fit") first; where it asks its Trainer, pass batches instead'
            ) from error
        except MisconfigurationException as error:
            raise DataError(f"{kind} has no training data: {error}") from error
        except Exception as error:  # of any kind: it is the user's code
            raise DataError(f"{kind}: its train_dataloader() fails ({type(error).__name__}: {error})") from error
        if loader is None:
            raise DataError(f"{kind} has no training data: its train_dataloader() returns None")
        for batch, _, _ in CombinedLoader(loader, "max_size_cycle"):
            yield self._transferred(batch)

    def _transferred(self, batch: Any) -> Any:
        """Return a batch as the hooks around the transfer to the device leave it."""
        try:
            before = self.datamodule.on_before_batch_transfer(batch, 0)
            moved = self.datamodule.transfer_batch_to_device(before, torch.device("cpu"), 0)
            return self.datamodule.on_after_batch_transfer(moved, 0)
        except Exception as error:  # of any kind: it is the user's code, written for a fit
            raise DataError(
                f"{type(self.datamodule).__name__}: its hooks around a batch's transfer fail outside a fit "
                f"({type(error).__name__}: {error}): pass batches of what the model is trained on"
            ) from error


def as_batches(data: Any) -> Any:
    """Return the training batches of a LightningDataModule; anything else as it is.

    Args:
        data: batches, or a LightningDataModule.
    """
    if not hasattr(data, "on_after_batch_transfer"):
        return data
    if isinstance(data, type):
        raise DataError(f"the data module {data.__name__} is a class: make an object of it and set that up")
    return TrainingBatches(data)


def batches(model: nn.Module, data: Iterable[Any], images: int | None, caller: str) -> Iterator[tuple[Any, Any, int]]:
    """Return calibration batches on the model's device, cut off after a number of images.

    Args:
        model: Only to know the device.
        data: Batches: a tensor, ``(inputs, targets, ...)``, or a mapping that ``forward`` takes as keywords. On several
            processes ``data`` is the same everywhere, and each process gets every n-th image.
        images: Number of images over all processes, or None for all of ``data``.
        caller: Who asks, for messages.

    Yields:
        Inputs, targets (None if there are none) and number of images; 0 where a batch has none for this process.

    Raises:
        DataError: there is no image, there are fewer than processes, or a batch is none of the above.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    seen = 0
    for batch in data:
        inputs, targets = split_batch(batch, caller)
        size = batch_size(inputs, caller)
        end = size if images is None else min(size, images - seen)
        mine = range(size)[(process() - seen) % world_size() : end : world_size()]
        seen += end
        if len(mine) == size:
            yield *on_device(device, (inputs, targets)), size
        elif mine:
            part = slice(mine.start, mine.stop, mine.step)
            yield *on_device(device, rows_of((inputs, targets), size, part)), len(mine)
        else:
            yield None, None, 0
        if seen == images:
            break
    if not seen:
        raise DataError(f"{caller}: the calibration data holds no image; pass batches of training images")
    if seen < world_size():
        raise DataError(f"{caller}: {seen} calibration images do not suffice for {world_size()} processes; give more")


def rows_of(tree: Any, size: int, rows: slice | Tensor) -> Any:
    """Return some rows of every tensor that has one row for each of ``size`` images, and those of lists of images.

    Args:
        tree: inputs and targets of a batch, nested in any way.
        size: number of images in the batch.
        rows: which of them.
    """

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Arguments):
            return Arguments(tuple(map(of_argument, leaf.args)), {k: of_argument(v) for k, v in leaf.kwargs.items()})
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.shape[:1] == (size,) else leaf

    def of_argument(argument: Any) -> Any:
        if not holds_entries(argument):
            return rows_of(argument, size, rows)
        chosen = range(size)[rows] if isinstance(rows, slice) else rows.tolist()
        return [argument[row] for row in chosen] if len(argument) == size else argument

    return tree_map(taken, tree, is_leaf=lambda node: isinstance(node, Arguments))


def on_device(device: torch.device, tree: Any) -> Any:
    """Return the tensors of a batch on a device.

    Args:
        device: the device.
        tree: a batch, nested in any way.
    """
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def split_batch(batch: Any, caller: str) -> tuple[Any, Any]:
    """Split a batch, as a data loader yields it, into inputs and targets.

    Args:
        batch: a tensor, ``(inputs, targets, ...)`` or a mapping of inputs.
        caller: who asks, for messages.

    Returns:
        Inputs and targets; None where there are no targets.

    Raises:
        DataError: the batch is none of these.
    """
    if isinstance(batch, (Tensor, dict)):
        return batch, None
    if isinstance(batch, (list, tuple)) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    raise DataError(
        f"{caller}: a batch must be a tensor, (inputs, targets) or a mapping of inputs, got {type(batch).__name__}"
    )


def batch_size(inputs: Any, caller: str) -> int:
    """Return the number of images in the inputs of a batch.

    Args:
        inputs: of one batch.
        caller: who asks, for messages.

    Raises:
        DataError: the first of the inputs is no tensor.
    """
    first = inputs.arguments if isinstance(inputs, ModelCall) else inputs
    if holds_lists_of_images(inputs):
        return next(len(argument) for argument in first if holds_entries(argument))
    while isinstance(first, (list, tuple, dict)) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    if not isinstance(first, Tensor) or not first.dim():
        raise DataError(f"{caller}: the inputs of a batch must be tensors, got {type(first).__name__}")
    return len(first)


def numbers_in(inputs: Any) -> int:
    """Return how many numbers the tensors of a batch's inputs hold.

    Args:
        inputs: of one batch.
    """
    arguments = inputs.arguments if isinstance(inputs, ModelCall) else inputs
    return sum(leaf.numel() for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))


def holds_lists_of_images(inputs: Any) -> bool:
    """Return whether an argument of a call is a list with one image each, as detectors take them.

    Args:
        inputs: of one batch. Only a `ModelCall` tells an argument that is a list from several arguments.
    """
    return isinstance(inputs, ModelCall) and any(map(holds_entries, inputs.arguments))


def run(model: nn.Module, inputs: Any) -> Any:
    """Call the model on the inputs of a batch: positional, several positional, or keywords.

    Args:
        model: the model.
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        DataError: the model's forward fails on them.
    """
    try:
        return call_model(model, tuple(inputs) if isinstance(inputs, list) else inputs)  # loaders make lists of tuples
    except InfopruneError:
        raise
    except Exception as error:  # the user's forward may fail in any way on batches that are not its inputs
        leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves) or f"unknown ({type(inputs).__name__})"
        reason = str(error).partition("\n")[0]
        advice = "give batches as the model is trained on" + advice_on(model, inputs)
        if any(leaf.dtype == torch.uint8 for leaf in leaves):
            advice = (
                "the images are bytes, which a data module normalises only behind its loader: pass the data module "
                "itself (data=datamodule), or batches of normalised floats"
            )
        raise DataError(
            f"the model's forward failed on a batch of shape {shapes} ({type(error).__name__}: {reason}): {advice}"
        ) from error
