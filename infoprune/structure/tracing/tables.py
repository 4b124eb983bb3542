"""Tables that a model's code makes once and keeps outside of its modules: in a global dict or an object, say.

A pass on shapes that is the first to run such code would leave a tensor without numbers there, and the code that made
it would not run again. So these tensors get their numbers, and the pass is repeated. From then on what the code makes
on the device of its inputs has numbers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.errors import TraceError
from infoprune.structure.tensors import OwnedTensor
from infoprune.structure.tracing.values import Call, Values

if TYPE_CHECKING:
    from infoprune.structure.tracing.relabel import Recording


_NUMBERS = frozenset({bool, int, float, str})
"""Kinds of attributes that are skipped at once: most are such."""


def kept_elsewhere(tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the tensors that no attribute of a module is or contains: attributes are restored after a pass.

    Args:
        tensors: tensors without labels that are still held after a pass.
        modules: all modules of the model.
    """
    restored: set[int] = set()
    waiting: list[Any] = [vars(module) for module in modules]
    while waiting:
        value = waiting.pop()
        if value is None or type(value) in _NUMBERS or id(value) in restored:
            continue
        restored.add(id(value))
        if isinstance(value, nn.Module):  # that was built in the pass
            waiting.append(vars(value))
        elif isinstance(value, dict | list | set | tuple):
            waiting += value.values() if isinstance(value, dict) else value
    return [tensor for tensor in tensors if id(tensor) not in restored]


def give_numbers(tables: Sequence[Tensor], recording: Recording, own: Iterable[OwnedTensor]) -> torch.device | None:
    """Give tensors on shapes their numbers, whoever holds them.

    Those that cannot be computed stay as they are: they depend on the inputs, or on numbers that were overwritten. The
    recording is emptied: the pass has to be repeated.

    Args:
        tables: tensors of a pass, some of them on shapes.
        recording: that pass.
        own: the model's tensors.

    Returns:
        The device of the model; None if there is none with numbers now.

    Raises:
        TraceError: one has numbers, but other code holds a view of it.
    """
    real = [entry.tensor for entry in own]
    device = next((tensor.device for tensor in real), torch.device("cpu"))
    numbers = _computed([table for table in tables if table.is_meta], recording, real)
    recording.steps.clear()  # whose views would hold the memory of tables
    for table, number in sorted(numbers, key=lambda pair: not pair[0]._is_view()):
        try:
            torch.utils.swap_tensors(table, number.to(device).clone())
        except RuntimeError as error:
            raise TraceError(
                "the forward keeps a tensor outside of the model's modules, of which other code holds a view, so that "
                "the model cannot be traced on shapes before its first call: call it once on its inputs before"
            ) from error
    return None if all(table.is_meta for table in tables) else device


def _computed(tables: Sequence[Tensor], recording: Recording, real: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return tensors on shapes with their numbers, as far as these can be computed."""
    values = Values(zip((shape for shape, _ in recording.labelled_tensors), real, strict=True), ())
    for step in recording.steps:
        values.note(Call(step.operator.func, step.record.name, step.args, step.kwargs, step.tensors, step.outs))
    found = []
    for table in tables:
        with suppress(KeyError, RuntimeError):
            found += [(table, number) for number in values.numbers_of([table])]
    return found


def with_numbers(kwargs: Mapping[str, Any], operands: Iterable[Tensor], device: torch.device | None) -> dict[str, Any]:
    """Return the arguments of an operator that makes or moves a tensor, so that the result has numbers where it can.

    Args:
        kwargs: keyword arguments of the operator.
        operands: the tensors among its arguments.
        device: where results with numbers are; None: on shapes, as the code asks.
    """
    asked = kwargs.get("device")
    if device is None or asked is None or asked.type != "meta" or any(operand.is_meta for operand in operands):
        return dict(kwargs)
    return {**kwargs, "device": device}
