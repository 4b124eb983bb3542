"""What every test shares: few threads, no network for loggers, and the same random numbers each time."""

from __future__ import annotations

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

# Two cores: one process may use both, but under pytest-xdist each worker keeps to one.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
