"""What a benchmark ran on, for the head of its table."""

from __future__ import annotations

import platform

import torch

import infoprune


def describe() -> str:
    """Processor threads, GPU if any, and versions, in one line."""
    cpu = f"CPU ({torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()})"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return f"{device}, Python {platform.python_version()}, torch {torch.__version__}, infoprune {infoprune.__version__}"
