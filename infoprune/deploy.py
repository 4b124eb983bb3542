"""Export models for OpenVINO and ExecuTorch, and in int8: files for the runtimes of `infoprune.backends`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.backends import executorch, get_backend, onnx_model, onnxruntime, openvino
from infoprune.calibration import as_batches, evaluating, run, split_batch
from infoprune.errors import ConfigurationError, DataError, ExportError
from infoprune.export import Parity, check_target, compared, feed, quietly, to_onnx, to_program, written
from infoprune.inputs import call_model
from infoprune.network_batches import NetworkBatches
from infoprune.shapes import batch_size, with_batch

if TYPE_CHECKING:
    from infoprune.inputs import Inputs

CALIBRATION_BATCHES = 20
"""At most so many batches set the ranges of int8 activations."""


class Runtime(nn.Module):
    """A loaded file as a module, to be compared with the model that it was made from.

    Args:
        run: Takes arrays by input name and returns arrays.
        names: The names of the inputs, in the order of the model's arguments.
    """

    def __init__(self, run: Callable[[dict[str, Any]], Any], names: list[str]) -> None:
        super().__init__()
        self.run, self.names = run, names

    def forward(self, *args: Tensor, **named: Tensor) -> list[Tensor] | Tensor:
        """Run on tensors; one output as a tensor, several as a list."""
        outputs = [torch.from_numpy(value.copy()) for value in self.run(feed(self.names, named or args))]
        return outputs[0] if len(outputs) == 1 else outputs


def to_openvino(model: nn.Module, inputs: Inputs, path: str | Path, dynamic_batch: bool = True) -> Parity:
    """Export a model to OpenVINO's format in float32, and compare the outputs in OpenVINO.

    Args:
        model: The model, which is not changed.
        inputs: Example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        path: The ``.xml`` file to write; the weights go beside it, into a ``.bin`` of the same name.
        dynamic_batch: Whether the file takes any batch size.

    Returns:
        How far the outputs are from the model's.

    Raises:
        ConfigurationError: openvino, onnx or onnxscript is not installed; says how to get it.
        ExportError: an operator that it cannot take, or the outputs differ; nothing is written.
    """
    get_backend("openvino")
    _check_openvino_target(Path(path))
    read = openvino.read_model(_onnx(model, inputs, dynamic_batch))
    examples = with_batch(inputs, max(2, batch_size(inputs))) if dynamic_batch else inputs
    runtime = _in_openvino(read)
    parity = compared(model, lambda given: call_model(runtime, given), examples, dynamic_batch, "OpenVINO model")
    _save_openvino(read, Path(path))
    return parity


def to_executorch(model: nn.Module, inputs: Inputs, path: str | Path) -> Parity:
    """Export a model to ExecuTorch with XNNPACK, for the batch size of the inputs, and compare the outputs there.

    Args:
        model: The model, which is not changed.
        inputs: Example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        path: The ``.pte`` file to write.

    Returns:
        How far the outputs are from the model's.

    Raises:
        ConfigurationError: executorch is not installed; says how to get it.
        ExportError: an operator that it cannot take, or the outputs differ. Nothing is written.
    """
    get_backend("executorch")
    check_target(path)
    program, _ = to_program(model, inputs, None, dynamic_batch=False)
    data = executorch.lowered(program)
    execute = executorch.loaded(data)
    parity = compared(model, lambda given: execute(executorch.arguments(given)), inputs, False, "ExecuTorch program")
    with written(path) as scratch:
        scratch.write_bytes(data)
    return parity


def to_int8(
    model: nn.Module, inputs: Inputs, path: str | Path, data: Iterable[Any], runtime: str = "onnxruntime"
) -> Runtime:
    """Write a model in int8: weights quantized by channel, activations by their ranges on calibration images.

    The runtime's library quantizes it: onnxruntime's static quantization, or NNCF for OpenVINO.

    Args:
        model: The model, which is not changed.
        inputs: Example inputs.
        path: The ``.onnx`` file to write, which takes any batch size; or the ``.xml`` for OpenVINO, for the batch size
            of the inputs.
        data: Batches of images, transformed as in evaluation, at most 20 of which are used; or a
            LightningDataModule after ``setup("fit")``.
        runtime: ``"onnxruntime"`` or ``"openvino"``.

    Returns:
        The quantized model as a module, to measure its accuracy.

    Raises:
        ConfigurationError: the runtime is not installed.
        ExportError: it cannot take the model.
        DataError: ``data`` is empty.
    """
    get_backend({"name": runtime, "precision": "int8"})
    if runtime == "openvino":
        _check_openvino_target(Path(path))
    else:
        check_target(path)
    source = _onnx(model, inputs, dynamic_batch=True)
    found = islice(NetworkBatches(as_batches(data), inputs), CALIBRATION_BATCHES)
    batches = [split_batch(batch, "int8")[0] for batch in found]
    if not batches:
        raise DataError("int8: the calibration data holds no image; pass batches of images")
    with evaluating(model), torch.no_grad():
        run(model, batches[0])  # what the model cannot be run on cannot set ranges either
    if runtime == "openvino":
        read = openvino.read_model(source)
        names = [port.get_any_name() for port in read.inputs]
        quantized = openvino.quantized(read, [feed(names, batch) for batch in batches])
        _save_openvino(openvino.sized(quantized, feed(names, inputs)), Path(path))
        return _in_openvino_by_size(quantized, names)
    names = [entry.name for entry in onnxruntime.session(source).get_inputs()]
    content = onnx_model.quantized(source, [feed(names, batch) for batch in batches])
    with written(path) as scratch:
        scratch.write_bytes(content)
    session = onnxruntime.session(content)
    return Runtime(lambda given: session.run(None, given), names)


def _onnx(model: nn.Module, inputs: Inputs, dynamic_batch: bool) -> bytes:
    with TemporaryDirectory() as folder:
        to_onnx(model, inputs, path := Path(folder, "model.onnx"), dynamic_batch)
        return path.read_bytes()


def _in_openvino(read: Any) -> Runtime:
    compiled = openvino.compiled(read)
    names = [port.get_any_name() for port in read.inputs]

    def run(given: dict[str, Any]) -> Iterator[Any]:
        results = compiled(given)
        return iter([results[port] for port in compiled.outputs])

    return Runtime(run, names)


def _in_openvino_by_size(read: Any, names: list[str]) -> Runtime:
    """Return a model that is compiled for each size of inputs that it gets."""
    compiled: dict[tuple[tuple[int, ...], ...], Runtime] = {}

    def run(given: dict[str, Any]) -> Iterator[Any]:
        key = tuple(given[name].shape for name in names)
        if key not in compiled:
            compiled[key] = _in_openvino(openvino.sized(read, given))
        return iter(compiled[key].run(given))

    return Runtime(run, names)


def _check_openvino_target(path: Path) -> None:
    if path.suffix != ".xml":
        raise ConfigurationError(f"{path}: OpenVINO's files are named .xml and .bin, give a name that ends in .xml")
    for suffix in (".xml", ".bin"):
        check_target(path.with_suffix(suffix))


def _save_openvino(read: Any, path: Path) -> None:
    """Write both files, or none."""
    import openvino as runtime

    try:
        with TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
            with quietly():
                runtime.save_model(read, str(Path(folder, path.name)), compress_to_fp16=False)
            for suffix in (".bin", ".xml"):
                os.replace(Path(folder, path.name).with_suffix(suffix), path.with_suffix(suffix))
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
