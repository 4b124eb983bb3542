"""Backend for ExecuTorch with XNNPACK, the CPU kernels of phones and boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.timing import timed
from infoprune.errors import ExportError
from infoprune.export import operator_named_in, quietly, to_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from infoprune.inputs import Inputs

Execute: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]
"""Takes a program's inputs and returns its outputs."""


@BACKENDS.register("executorch")
@dataclass(kw_only=True)
class ExecuTorch(Backend):
    """Lower the model to XNNPACK and run it in ExecuTorch's runtime. Loading takes some seconds."""

    packages: ClassVar[tuple[str, ...]] = ("executorch",)

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls the loaded program."""
        program, _ = to_program(model, example_inputs, None, dynamic_batch=False)
        execute = loaded(lowered(program))
        given = arguments(example_inputs)
        return lambda: timed(lambda: execute(given))


def lowered(program: ExportedProgram) -> bytes:
    """Lower an exported program to ExecuTorch, with every operator that XNNPACK supports delegated to it.

    Args:
        program: of `torch.export`.

    Returns:
        The bytes of a ``.pte`` file.

    Raises:
        ExportError: ExecuTorch has no such operator.
    """
    with quietly():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as error:  # every error that lowering raises concerns the model
            found = operator_named_in(str(error), program)
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"ExecuTorch has no {found}: replace it" if found else f"ExecuTorch cannot take the model: {reason}"
            ) from error


def loaded(program: bytes) -> Execute:
    """Return a function that runs the forward method of a program in ExecuTorch's runtime.

    Args:
        program: the bytes of a ``.pte`` file.
    """
    with quietly():
        from executorch.runtime import Runtime

        whole = Runtime.get().load_program(program)
        whole.load_method("forward")
    # The method reads the program's bytes as it runs, and only `whole` keeps them: hold that, not the method alone.
    return lambda inputs: whole.load_method("forward").execute(inputs)  # loaded once, then looked up


def arguments(inputs: Inputs) -> list[Any]:
    """Return inputs as the runtime takes them.

    Args:
        inputs: the example inputs.
    """
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
