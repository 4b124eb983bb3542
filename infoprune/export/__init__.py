"""Export a model out of the framework: ONNX, a `torch.export` program, plain weights with a record of the structure."""

from infoprune.export.messages import operator_named_in, quietly
from infoprune.export.onnx import check_onnx, feed, inference_session, to_onnx
from infoprune.export.parity import TOLERANCE, Parity, compared
from infoprune.export.program import check_target, to_program, written
from infoprune.export.weights import structure_record, to_weights

__all__ = [
    "TOLERANCE",
    "Parity",
    "check_onnx",
    "check_target",
    "compared",
    "feed",
    "inference_session",
    "operator_named_in",
    "quietly",
    "structure_record",
    "to_onnx",
    "to_program",
    "to_weights",
    "written",
]
