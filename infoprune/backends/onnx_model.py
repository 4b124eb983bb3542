"""Export models to ONNX quickly, for timing; files to keep are written by `infoprune.export`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.calibration import evaluating
from infoprune.export import quietly, to_onnx

if TYPE_CHECKING:
    from infoprune.inputs import Inputs

PRECISIONS = ("fp32", "int8")


def onnx_bytes(model: nn.Module, inputs: Inputs) -> bytes:
    """Return a model as ONNX for inputs of this shape, with batch norm folded.

    The older exporter takes a tenth of the time of the newer, and the runtimes make the same of both.

    Args:
        model: the model.
        inputs: inputs of the shape that it will run on.

    Raises:
        ExportError: neither can take the model; says where.
    """
    if not isinstance(inputs, Mapping):  # the older exporter loses the names of a mapping
        args, buffer = inputs if isinstance(inputs, tuple) else (inputs,), io.BytesIO()
        with suppress(Exception):  # of any kind; the newer exporter says why, or takes the model
            with evaluating(model), torch.no_grad(), quietly(), _silent_process():
                torch.onnx.export(model, args, buffer, dynamo=False)  # type: ignore[arg-type]
            return buffer.getvalue()
    with TemporaryDirectory() as folder:
        to_onnx(model, inputs, path := Path(folder, "model.onnx"), dynamic_batch=False)
        return path.read_bytes()


@contextmanager
def _silent_process() -> Iterator[None]:
    """Silence the older exporter's C++ code, which writes the whole graph to the process's output when it fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        with open(os.devnull, "wb") as nothing:
            for stream in kept:
                os.dup2(nothing.fileno(), stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


def quantized(model: bytes, feeds: Iterable[Mapping[str, Any]]) -> bytes:
    """Return an ONNX model in int8: weights by channel, activations by the range that they take on these inputs.

    Source: onnxruntime's static quantization.

    Args:
        model: an ONNX file in float32.
        feeds: calibration inputs, arrays by name.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with TemporaryDirectory() as folder, quietly():
        source, prepared, target = (Path(folder, name) for name in ("source.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(model)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()
