"""Export a model to ONNX, and run it in ONNX Runtime for comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves

from infoprune.errors import ConfigurationError, ExportError
from infoprune.export.messages import first_sentence, operator_named_in, quietly
from infoprune.export.parity import Parity, compared
from infoprune.export.program import check_target, to_program, written
from infoprune.inputs import Inputs
from infoprune.shapes import batch_size, with_batch

if TYPE_CHECKING:
    import numpy as np

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")

TOO_NEW_FOR_TORCH_2_6 = {"onnxscript": "0.5.4", "onnx_ir": "0.1.16"}
"""From which versions on the ONNX exporter inside torch 2.6 fails on every model (batch norm; functions left over)."""


def to_onnx(model: nn.Module, inputs: Inputs, path: str | Path, dynamic_batch: bool = True) -> Parity:
    """Export a model to ONNX and compare outputs in onnxruntime.

    Args:
        model: the model, which is not changed.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        path: the ``.onnx`` file to write.
        dynamic_batch: whether the file takes any batch size.

    Returns:
        How far the outputs are from the model's.

    Raises:
        ConfigurationError: onnx, onnxscript or onnxruntime is not installed; says how to get it.
        ExportError: ONNX has no such operator (names it and its layer), or the outputs differ. Nothing is written.
    """
    check_onnx()
    check_target(path)
    program, _ = to_program(model, inputs, None, dynamic_batch)
    with quietly():
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # whatever the exporter raises is about the model
            raise ExportError(_missing_operator(program, error)) from error
    assert exported is not None
    examples = with_batch(inputs, max(2, batch_size(inputs))) if dynamic_batch else inputs
    with written(path) as scratch:
        with quietly():
            exported.save(str(scratch))
        return compared(model, _runtime(scratch), examples, dynamic_batch, "ONNX model")


def check_onnx() -> None:
    """Raise a ConfigurationError that says how to get what an export to ONNX needs, where it is missing or too new."""
    missing = [name for name in ONNX_NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"an export to ONNX needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: pip install 'infoprune[export]'"
        )
    too_new = [name for name, first in TOO_NEW_FOR_TORCH_2_6.items() if TorchVersion(version(name)) >= first]
    if torch.__version__ < "2.7" and too_new:  # compares versions, not letters
        found = " and ".join(f"{name} {version(name)}" for name in too_new)
        fitting = " ".join(f"'{name}<{first}'" for name, first in TOO_NEW_FOR_TORCH_2_6.items())
        raise ConfigurationError(
            f"torch {torch.__version__} cannot export to ONNX with {found}: pip install {fitting}, or a newer torch"
        )


def _runtime(path: Path) -> Any:
    """Return the model in a file as a function of inputs, run by onnxruntime on the CPU."""
    session = inference_session(str(path))
    names = [entry.name for entry in session.get_inputs()]

    return lambda inputs: [torch.from_numpy(value) for value in session.run(None, feed(names, inputs))]


def inference_session(model: str | bytes, options: Any = None) -> Any:
    """Return a session of onnxruntime on the CPU.

    Args:
        model: An ONNX file, or its path.
        options: A ``SessionOptions``.

    Raises:
        ExportError: onnxruntime cannot run an operator of the model on these types; names the node, whose name holds
            that of the layer.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises is about the model
        reason = " ".join(str(error).rpartition(" : ")[2].rpartition("failed:")[2].split())
        narrow = " (it takes no bfloat16: use model.float())" if "bfloat16" in reason else ""
        raise ExportError(f"onnxruntime cannot run the model{narrow}: {reason:.300}") from error


def feed(names: Sequence[str], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return inputs as a runtime takes them: arrays by the names in the file, which holds numbers as constants.

    Args:
        names: names of the inputs in the file.
        inputs: the example inputs.

    Raises:
        ExportError: an input is in bfloat16, which NumPy lacks.
    """
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        values: Iterable[Any] = [inputs[name] for name in names]
    else:
        values = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    given = dict(zip(names, values, strict=False))
    narrow = next((name for name, value in given.items() if value.dtype == torch.bfloat16), None)
    if narrow is not None:
        raise ExportError(f"the input {narrow} is in bfloat16, which the runtime cannot be given: use model.float()")
    return {name: value.detach().cpu().numpy() for name, value in given.items()}


def _missing_operator(program: ExportedProgram, error: BaseException) -> str:
    """Return which operator ONNX lacks, and in which layer."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    found = operator_named_in(" ".join(causes), program)
    if not found:
        return f"the ONNX exporter failed: {first_sentence(causes[-1])}"
    return f"ONNX has no {found}: replace it, or export a torch.export program instead (--to torch)"
