"""Export a model as a `torch.export` program."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from infoprune.calibration import evaluating
from infoprune.errors import ConfigurationError, ExportError
from infoprune.export.messages import first_sentence, quietly, why_not
from infoprune.export.parity import Parity, compared
from infoprune.files import written_whole
from infoprune.inputs import Inputs, advice_on, call_model
from infoprune.shapes import batch_size, with_batch


def to_program(
    model: nn.Module, inputs: Inputs, path: str | Path | None = None, dynamic_batch: bool = True
) -> tuple[ExportedProgram, Parity]:
    """Export a model with `torch.export`, in eval mode, and compare outputs.

    Args:
        model: the model, which is not changed.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        path: the ``.pt2`` file to write, for ``torch.export.load``; None writes nothing.
        dynamic_batch: whether the program takes any batch size.

    Returns:
        The program, and how far its outputs are from the model's.

    Raises:
        ExportError: the model cannot be exported (names the line of its code, or the batch size that it fixes), or the
            outputs differ.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> program, parity = to_program(net, torch.randn(1, 3, 8, 8))
        >>> program.module()(torch.randn(7, 3, 8, 8)).shape, parity.max_error
        (torch.Size([7, 4, 6, 6]), 0.0)
    """
    if path is not None:
        check_target(path)
    examples = with_batch(inputs, max(2, batch_size(inputs))) if dynamic_batch else inputs
    with evaluating(model), quietly():
        try:
            program = _export(model, examples, dynamic_batch)
        except Exception as error:  # whatever torch.export raises is about the model
            raise ExportError(why_not(model, error) + advice_on(model, inputs)) from error
    runner = program.module()
    parity = compared(model, lambda given: call_model(runner, given), examples, dynamic_batch, "torch.export program")
    if path is not None:
        with written(path) as scratch, quietly(), scratch.open("wb") as file:
            try:
                torch.export.save(program, file)
            except (NotImplementedError, TypeError, ValueError) as error:  # of outputs in classes of the user's
                raise ExportError(
                    f"torch.export cannot write {type(model).__name__} to a file: {first_sentence(str(error))}"
                ) from error
    return program, parity


def check_target(path: str | Path) -> None:
    """Refuse, before a long export, a file that cannot be written.

    Args:
        path: the file to be written.
    """
    target = Path(path)
    if target.is_dir():
        raise ConfigurationError(f"{target} is a folder: name a file in it")
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: {target.parent} is no folder")
    if not os.access(target.parent, os.W_OK):
        raise ConfigurationError(f"{target} cannot be written: the folder {target.parent} is read-only")


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Yield an empty file that takes the place of ``path`` in the end; after an error nothing has changed.

    Args:
        path: the file to write.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        with written_whole(path) as scratch:
            yield scratch
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error


def _export(model: nn.Module, inputs: Inputs, dynamic_batch: bool) -> ExportedProgram:
    size = batch_size(inputs)
    batch = Dim("batch", max=2**20)  # torch 2.6 does not take one without a bound

    def free(tensor: Any) -> Any:
        return {0: batch} if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[0] == size else None

    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    args = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    # By the names of the forward: all that *args takes is one entry.
    given = inspect.signature(model.forward).bind(*args, **named).arguments
    shapes = tree_map(free, dict(given)) if dynamic_batch else None
    # Not strict is the default from torch 2.8 on.
    return torch.export.export(model, args, named or None, dynamic_shapes=shapes, strict=False)
