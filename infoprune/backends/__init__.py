"""Backends: the runtimes in which models are deployed and timed.

A :class:`Backend` makes a model ready to run and says how long a run takes; one file each. What it needs is imported
when it is used.
"""

from infoprune.backends.backend import BACKENDS, Backend, Run, get_backend
from infoprune.backends.compile import Compile
from infoprune.backends.eager import Eager
from infoprune.backends.executorch import ExecuTorch
from infoprune.backends.function import Function
from infoprune.backends.onnxruntime import OnnxRuntime
from infoprune.backends.openvino import OpenVino
from infoprune.backends.timing import Latency, latency

__all__ = [
    "BACKENDS",
    "Backend",
    "Compile",
    "Eager",
    "ExecuTorch",
    "Function",
    "Latency",
    "OnnxRuntime",
    "OpenVino",
    "Run",
    "get_backend",
    "latency",
]
