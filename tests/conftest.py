"""What every test shares: few threads, no network for loggers, the same random numbers each time, and no time lost."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest

gc.disable()  # while all is imported


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the processes that run tests; the one that hands them out to others need not wait for an import."""
    worker = hasattr(config, "workerinput")
    if worker:
        from tests import warm

        warm.fork_server()
    if worker or not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1 if worker else 2)  # two cores, and each of two workers keeps to one


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Take time out of every test, once all is imported.

    Garbage collections leave out what is imported by now: it stays, and walking it takes half a second. The packages
    that are installed stay too: every Trainer looks through all of them for callbacks.
    """
    gc.enable()
    if "torch" not in sys.modules:
        return
    gc.collect()
    gc.freeze()
    if "lightning.fabric.utilities.registry" in sys.modules:
        sys.modules["lightning.fabric.utilities.registry"].entry_points = functools.cache(
            importlib.metadata.entry_points
        )


@pytest.fixture(scope="session")
def onnx_operators() -> None:
    """Let ``torch.onnx`` read the operators of ONNX once: for each export it reads five hundred anew, in a second."""
    if importlib.util.find_spec("torch.onnx._internal.exporter._registration"):  # where PyTorch has it today
        from torch.onnx._internal.exporter import _registration

        read = functools.cache(_registration.ONNXRegistry.from_torchlib)

        def copied(*args: object, **options: object) -> object:
            registry = copy.copy(read(*args, **options))
            registry.functions = {name: [*found] for name, found in registry.functions.items()}
            return registry

        _registration.ONNXRegistry.from_torchlib = staticmethod(copied)


@pytest.fixture(params=["few batches", pytest.param("all batches", marks=pytest.mark.slow)])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run code of the documentation with few batches an epoch; in the slow tests with all, too."""
    if request.param == "few batches":
        import lightning

        few = dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 4)
        monkeypatch.setattr(lightning, "Trainer", functools.partial(lightning.Trainer, **few))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For networks so small that a second thread costs more than it brings, and for equal rounding."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
