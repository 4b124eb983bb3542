"""Export a model out of the framework: ONNX, a `torch.export` program, plain weights with a record of the structure."""

from __future__ import annotations

import io
import json
import linecache
import logging
import math
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves

from infoprune.calibration import evaluating
from infoprune.errors import ConfigurationError, ExportError
from infoprune.files import write_text_whole, written_whole
from infoprune.inputs import Inputs, advice_on, call_model
from infoprune.shapes import batch_size, shapes_of, with_batch
from infoprune.structure import plan_of, trace
from infoprune.version import __version__

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
"""Number of the layout of the structure record."""

TOLERANCE = 1e-3
"""Largest difference of outputs, relative to the largest output, that counts as rounding (float32, fused kernels)."""

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")

TOO_NEW_FOR_TORCH_2_6 = {"onnxscript": "0.5.4", "onnx_ir": "0.1.16"}
"""From which versions on the ONNX exporter inside torch 2.6 fails on every model (batch norm; functions left over)."""


@dataclass(frozen=True)
class Parity:
    """How far an exported model's outputs are from the model's own.

    Attributes:
        max_error: largest difference, relative to the largest output.
        batches: batch sizes that were tried.
    """

    max_error: float
    batches: tuple[int, ...]


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
            raise ExportError(_why(model, error) + advice_on(model, inputs)) from error
    runner = program.module()
    parity = compared(model, lambda given: call_model(runner, given), examples, dynamic_batch, "torch.export program")
    if path is not None:
        with written_whole(path) as scratch, quietly(), scratch.open("wb") as file:
            try:
                torch.export.save(program, file)
            except (NotImplementedError, TypeError, ValueError) as error:  # of outputs in classes of the user's
                raise ExportError(
                    f"torch.export cannot write {type(model).__name__} to a file: {_first_sentence(str(error))}"
                ) from error
    return program, parity


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
    with written_whole(path) as scratch:
        with quietly():
            exported.save(str(scratch))
        return compared(model, _runtime(scratch), examples, dynamic_batch, "ONNX model")


def to_weights(model: nn.Module, inputs: Inputs, weights: str | Path, structure: str | Path) -> None:
    """Write a model's weights as a plain state dict, and beside them what shape it has and how it came to it.

    Args:
        model: the model.
        inputs: example inputs.
        weights: the file for the state dict: tensors only, for any PyTorch.
        structure: the JSON file for the structure record: class, input shapes, cost, layers with their shapes, and
            the plan that leads from the unpruned architecture to them.
    """
    check_target(weights)
    check_target(structure)
    record = structure_record(model, inputs)
    with written_whole(weights) as scratch:
        torch.save({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, scratch)
    write_text_whole(structure, json.dumps(record, indent=1) + "\n")


def structure_record(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Return what another program needs to know of a pruned model: primitives only.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> [(layer["name"], layer["shape"]) for layer in structure_record(net, torch.zeros(1, 3, 8, 8))["layers"]]
    [('0', [4, 3, 3, 3])]
    """
    structure = trace(model, inputs)
    cost, costs = structure.cost(), structure.layer_costs()
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "weight": layer.weight,
            "shape": list(structure.shapes[layer.weight]),
            "filters": structure.shapes[layer.weight][layer.dim],
            "macs": costs[layer.name].macs if layer.name in costs else 0,
        }
        for layer in structure.layers
    ]
    return {
        "format": FORMAT,
        "infoprune": __version__,
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "input_shape": shapes_of(inputs),
        "macs": cost.macs,
        "params": cost.params,
        "layers": layers,
        "plan": plan_of(model).to_dict(),
    }


def check_target(path: str | Path) -> None:
    """Raise a ConfigurationError, before a long export, where a file cannot be written."""
    target = Path(path)
    if target.is_dir():
        raise ConfigurationError(f"{target} is a folder: name a file in it")
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: {target.parent} is no folder")


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


# -- exporting --------------------------------------------------------------------------------------------------------


def _export(model: nn.Module, inputs: Inputs, dynamic_batch: bool) -> ExportedProgram:
    size = batch_size(inputs)
    batch = Dim("batch", max=2**20)  # torch 2.6 does not take one without a bound

    def free(tensor: Any) -> Any:
        return {0: batch} if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[0] == size else None

    args: tuple[Any, ...]
    named: dict[str, Any] | None
    if isinstance(inputs, Mapping):
        args, named = (), dict(inputs)
        shapes: Any = {name: free(tensor) for name, tensor in inputs.items()}
    else:
        args, named = inputs if isinstance(inputs, tuple) else (inputs,), None
        shapes = tuple(free(tensor) for tensor in args)
    # Not strict is the default from torch 2.8 on.
    return torch.export.export(model, args, named, dynamic_shapes=shapes if dynamic_batch else None, strict=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the exporters' warnings, logs and prints; the error says what matters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# -- comparing --------------------------------------------------------------------------------------------------------


def compared(model: nn.Module, exported: Any, inputs: Inputs, dynamic_batch: bool, what: str) -> Parity:
    """Compare a model's outputs with those of its exported form, at two batch sizes if any is taken.

    Args:
        model: any module, in eval mode.
        exported: takes the inputs as one argument.
        inputs: example inputs.
        dynamic_batch: whether any batch size is taken.
        what: how messages refer to the exported form.

    Raises:
        ExportError: they differ by more than rounding.
    """
    sizes = (batch_size(inputs), batch_size(inputs) + 3) if dynamic_batch else (batch_size(inputs),)
    worst = 0.0
    for size in sizes:
        given = with_batch(inputs, size)
        with evaluating(model), torch.no_grad():
            expected = _tensors(call_model(model, given))
            actual = _tensors(exported(given))
        if len(expected) != len(actual):
            raise ExportError(f"the {what} has {len(actual)} outputs, the model {len(expected)}: it was not kept")
        worst = max([worst, *map(_difference, expected, actual)])
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the {what}'s outputs differ from the model's by {worst:.2g} of the largest output, more than "
            f"{TOLERANCE:g}: it was not kept"
        )
    return Parity(worst, sizes)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference, relative to the largest value; what is not finite has to be the same."""
    if expected.shape != actual.shape:
        return math.inf
    wide = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = expected.to(wide), actual.to(wide)
    same = (mine == theirs) | (mine.isnan() & theirs.isnan())
    if same.all():
        return 0.0
    largest = mine[mine.isfinite()].abs().max() if mine.isfinite().any() else mine.new_ones((), dtype=torch.float64)
    away = (mine - theirs)[~same].abs().max() / largest.clamp(min=1e-12)
    return away.nan_to_num(nan=math.inf, posinf=math.inf).item()


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf.cpu() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _runtime(path: Path) -> Any:
    """Return the model in a file as a function of inputs, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    return lambda inputs: [torch.from_numpy(value) for value in session.run(None, feed(names, inputs))]


def feed(names: Sequence[str], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return inputs as a runtime takes them: arrays by the names in the file, which holds numbers as constants."""
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        values: Iterable[Any] = [inputs[name] for name in names]
    else:
        values = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=False)}


# -- saying why not ---------------------------------------------------------------------------------------------------


def _why(model: nn.Module, error: Exception) -> str:
    """Say why `torch.export` refused a model, with the line of the model's code."""
    text = " ".join(str(error).split())
    fixed = re.search(r"(?:specialized it|inferred) to be a constant \((\d+)\)", text)
    if fixed:
        return (
            f"{type(model).__name__} fixes its batch size at {fixed[1]} in its forward: export with a fixed batch "
            "(--static_batch), or write the forward without it"
        )
    return f"torch.export cannot follow {type(model).__name__}{_place(model, error)}: {_first_sentence(text)}"


def _place(model: nn.Module, error: Exception) -> str:
    """Return the line of a forward, and the layer that it belongs to, where an error was raised."""
    home, names = str(Path(torch.__file__).parent), {module: name for name, module in model.named_modules()}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if code.co_name == "forward" and not code.co_filename.startswith(home):
            layer = names.get(frame.f_locals.get(code.co_varnames[0]))
            text = linecache.getline(code.co_filename, line).strip()
            return f" at {Path(code.co_filename).name}:{line} ({text})" + (f" in {layer}" if layer else "")
    return ""


def _missing_operator(program: ExportedProgram, error: BaseException) -> str:
    """Return which operator ONNX lacks, and in which layer."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    found = operator_named_in(" ".join(causes), program)
    if not found:
        return f"the ONNX exporter failed: {_first_sentence(causes[-1])}"
    return f"ONNX has no {found}: replace it, or export a torch.export program instead (--to torch)"


def operator_named_in(text: str, program: ExportedProgram) -> str:
    """Return the operator that an exporter's message is about, and the layer that calls it; "" if it names none.

    Args:
        text: what the exporter says.
        program: what it was to export.
    """
    found = re.search(r"op='([\w.]+)', overload='(\w+)'|_ops\.(\w+\.\w+)\.(\w+)", text)
    if not found:
        return ""
    name, overload = found[1] or found[3], found[2] or found[4]
    nodes = _nodes(program, f"{name}.{overload}")
    where = next((f" (in {layer})" for node in nodes if (layer := _layer_of(node))), "")
    return f"operator for {name}{where}"


def _nodes(program: ExportedProgram, operator: str) -> Iterator[Any]:
    """Return the nodes of a program, before and after decomposition, that call an operator."""
    for graph in (program, program.run_decompositions()):
        yield from (node for node in graph.graph.nodes if str(node.target) == operator)


def _layer_of(node: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!])\s|\n", text.strip(), maxsplit=1)[0][:300]
