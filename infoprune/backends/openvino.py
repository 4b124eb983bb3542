"""Backend for OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.onnx_model import PRECISIONS, onnx_bytes
from infoprune.backends.openvino_counters import SideBySide, name_by_network, seconds_by_network
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
        read, given = self._read(model, example_inputs)
        request = compiled(read).create_infer_request()
        return lambda: timed(lambda: request.infer(given, share_inputs=True, share_outputs=True))

    def seconds_of(self, networks: Sequence[tuple[nn.Module, Inputs]], runs: int) -> list[float]:
        """Return the seconds that each of some small networks takes, the fewest of some runs.

        All are compiled together, which takes a tenth of the time, and OpenVINO's counters tell them apart.

        Args:
            networks: The networks, each with its example inputs.
            runs: Measured runs of each.
        """
        modules, inputs = zip(*networks, strict=True)
        read, given = self._read(SideBySide(modules), inputs)
        name_by_network(read)
        request = compiled(read, PERF_COUNT=True).create_infer_request()
        counters = []
        for _ in range(self.warmup + runs):
            request.infer(given, share_inputs=True, share_outputs=True)
            counters.append(request.get_profiling_info())
        return seconds_by_network(counters[self.warmup :], len(networks))

    def _read(self, model: nn.Module, example_inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        """Return OpenVINO's model in this precision, and the inputs as it takes them."""
        read = read_model(onnx_bytes(model, example_inputs))
        given = feed([port.get_any_name() for port in read.inputs], example_inputs)
        return (quantized(read, [given]) if self.precision == "int8" else read), given


def read_model(onnx: bytes) -> Any:
    """Return an ONNX model as OpenVINO's.

    Args:
        onnx: an ONNX file.
    """
    import openvino

    return openvino.Core().read_model(onnx)


def compiled(model: Any, **options: Any) -> Any:
    """Return OpenVINO's model ready to run on the CPU in float32 (or int8, where it is quantized).

    Args:
        model: as `read_model` or `quantized` returns it.
        options: more of OpenVINO's properties.
    """
    import openvino

    # Processors with bfloat16 would use it by default, and their outputs would differ from the model's.
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", **options}
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
