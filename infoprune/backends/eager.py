"""Backend for eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.timing import timed
from infoprune.inputs import call_model

if TYPE_CHECKING:
    from infoprune.inputs import Inputs

# A little less than the largest block (32 MiB) whose release makes glibc keep what is freed later.
KEEPS_MEMORY = 31 * 2**20


@BACKENDS.register("eager")
@dataclass(kw_only=True)
class Eager(Backend):
    """Call the model as it is, on the CPU or a GPU.

    On the CPU, memory of activations is kept between the runs, as in a process that has served a model for a while.
    """

    quick_to_load: ClassVar[bool] = True

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls the model itself."""
        _keep_freed_memory()
        return timed_calls(model, model, example_inputs)


def timed_calls(function: Any, model: nn.Module, example_inputs: Inputs) -> Run:
    """Return a run that calls a function on the inputs, with the model in eval mode and without gradients.

    Args:
        function: what is called, with the inputs as arguments.
        model: the model, for its devices and modes.
        example_inputs: the inputs.
    """
    cuda = next((parameter.is_cuda for parameter in model.parameters()), False)

    def once() -> None:
        call_model(function, example_inputs)
        if cuda:
            torch.cuda.synchronize()

    def run() -> float:
        with _in_eval_mode(model), torch.no_grad():
            if cuda:
                torch.cuda.synchronize()
            return timed(once, on_the_wall=cuda)

    return run


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _keep_freed_memory() -> None:
    """Return whether glibc hands activations back after every run depends on what the process freed before: decide it.

    The threshold grows with the largest block of up to 32 MiB that was ever freed. Until it has, a third of a forward
    pass on the CPU can go into asking for the same pages anew, and the times scatter by a fifth.
    """
    torch.empty(KEEPS_MEMORY, dtype=torch.uint8)
