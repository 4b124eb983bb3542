"""What every test shares: few threads, no network for loggers, the same random numbers each time, and no time lost."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

# Two cores: one process may use both, but under pytest-xdist each worker keeps to one.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


gc.disable()  # while all is imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Take time out of every test, once all is imported.

    Garbage collections leave out what is imported by now: it stays, and walking it takes half a second. The packages
    that are installed stay too: every Trainer looks through all of them for callbacks.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    if "lightning.fabric.utilities.registry" in sys.modules:
        sys.modules["lightning.fabric.utilities.registry"].entry_points = functools.cache(
            importlib.metadata.entry_points
        )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For networks so small that a second thread costs more than it brings, and for equal rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
