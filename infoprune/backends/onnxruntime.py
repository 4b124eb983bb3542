"""Backend for ONNX Runtime on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.onnx_model import PRECISIONS, onnx_bytes, quantized
from infoprune.backends.timing import timed
from infoprune.export import feed, inference_session
from infoprune.registry import check_choice

if TYPE_CHECKING:
    from infoprune.inputs import Inputs


@BACKENDS.register("onnxruntime")
@dataclass(kw_only=True)
class OnnxRuntime(Backend):
    """Export the model to ONNX and run it in ONNX Runtime, with as many threads as PyTorch has.

    Args:
        precision: ``"fp32"``, or ``"int8"`` for weights and activations. What the numbers are makes no difference to
            the time, so the example inputs serve as calibration data.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    quick_to_load: ClassVar[bool] = True

    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_choice("backend 'onnxruntime'", "precision", self.precision, PRECISIONS)

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls an inference session."""
        data = onnx_bytes(model, example_inputs)
        if self.precision == "int8":
            names = [entry.name for entry in session(data).get_inputs()]
            data = quantized(data, [feed(names, example_inputs)])
        running = session(data)
        given = feed([entry.name for entry in running.get_inputs()], example_inputs)
        return lambda: timed(lambda: running.run(None, given))


def session(model: bytes) -> Any:
    """Return an inference session on the CPU.

    Args:
        model: an ONNX file.

    Raises:
        ExportError: onnxruntime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return inference_session(model, options)
