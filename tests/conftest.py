"""What every test shares: few threads, no network for loggers, and the same random numbers each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

# Two cores: one process may use both, but under pytest-xdist each worker keeps to one.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


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
