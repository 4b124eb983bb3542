"""Describe the device and the versions of a run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from infoprune.version import __version__


def device_name(device: torch.device) -> str:
    """Return a device's name in readable form.

    >>> device_name(torch.device("cpu")).startswith("cpu")
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} of {os.cpu_count()} cores)"
    return str(device)


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": _installed("lightning", "pytorch-lightning"),
        "infoprune": __version__,
    }


def _installed(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"
