"""Backend for OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.onnx_model import PRECISIONS, onnx_bytes
from infoprune.backends.signal_stack import kept_signal_stack
from infoprune.backends.timing import timed
from infoprune.export import feed, quietly
from infoprune.registry import check_choice

if TYPE_CHECKING:
    from infoprune.inputs import Inputs


@BACKENDS.register("openvino")
@dataclass(kw_only=True)
class OpenVino(Backend):
    """Export the model to ONNX and run it in OpenVINO, with as many threads as PyTorch has.

    Args:
        precision: ``"fp32"``, or ``"int8"`` for weights and activations (by NNCF). What the numbers are makes no
            difference to the time, so the example inputs serve as calibration data.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "openvino")
    quick_to_load: ClassVar[bool] = True

    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_choice("backend 'openvino'", "precision", self.precision, PRECISIONS)
        if self.precision == "int8":
            self.packages = (*type(self).packages, "nncf")  # type: ignore[misc]

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls an inference request."""
        read = read_model(onnx_bytes(model, example_inputs))
        given = feed([port.get_any_name() for port in read.inputs], example_inputs)
        if self.precision == "int8":
            read = quantized(read, [given])
        request = compiled(read).create_infer_request()
        return lambda: timed(lambda: request.infer(given, share_inputs=True, share_outputs=True))


def read_model(onnx: bytes) -> Any:
    """Return an ONNX model as OpenVINO's.

    Args:
        onnx: an ONNX file.
    """
    import openvino

    return openvino.Core().read_model(onnx)


def compiled(model: Any) -> Any:
    """Return OpenVINO's model ready to run on the CPU in float32 (or int8, where it is quantized).

    Args:
        model: as `read_model` or `quantized` returns it.
    """
    import openvino

    # Processors with bfloat16 would use it by default, at other outputs than the model's.
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    with kept_signal_stack():
        return openvino.Core().compile_model(model, "CPU", config)


def sized(model: Any, given: Mapping[str, Any]) -> Any:
    """Return a copy of OpenVINO's model for inputs of these sizes alone.

    Where the batch size is left open, int8 models with zeros beside channels (shortcuts of CIFAR's ResNets) compute
    other outputs on CPUs: OpenVINO 2026.4 classifies 23 % of CIFAR-10 with a ResNet-20 that has 92 % at a given size.

    Args:
        model: The model, which is not changed.
        given: Arrays by input name.
    """
    copied = model.clone()
    copied.reshape({name: list(array.shape) for name, array in given.items()})
    return copied


def quantized(model: Any, feeds: Iterable[Mapping[str, Any]]) -> Any:
    """Return OpenVINO's model in int8: weights by channel, activations by the range that they take on these inputs.

    Source: NNCF's static quantization.

    Args:
        model: as `read_model` returns it.
        feeds: calibration inputs, arrays by name.
    """
    with quietly(), kept_signal_stack():
        import nncf

        given = list(feeds)
        return nncf.quantize(model, nncf.Dataset(given), subset_size=len(given))
