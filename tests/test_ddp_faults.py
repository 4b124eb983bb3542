"""A process that fails, wherever in an event: all end within seconds, with its error."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from infoprune.callbacks import RunReport, filter_pruning
from infoprune.callbacks.engine import decider, fit_cut, held_copies, pruning_engine, renewal
from infoprune.callbacks.event_log import EventLog
from infoprune.callbacks.shape_guard import ShapeGuard
from tests import warm
from tests.tiny import TinyModule, images, pruning, trainer

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")

ENGINE, DECIDER = pruning_engine.PruningEngine, decider.Decider
FAULTS: dict[str, tuple[Any, str]] = {
    "finding the network": (ENGINE, "prepare"),
    "the checks before training": (ENGINE, "_check_ahead"),
    "finding copies in the module": (ENGINE, "_find_copies"),
    "finding copies outside of it": (held_copies, "_candidates"),
    "rehearsing the cut": (fit_cut.FitCut, "rehearse"),
    "scoring": (DECIDER, "score"),
    "measuring for the allocation": (DECIDER, "_prepare_allocation"),
    "deciding": (DECIDER, "_choose"),
    "proving the cut": (ENGINE, "_verify"),
    "shrinking": (fit_cut, "shrink_in_fit"),
    "measuring batch norm": (renewal, "recalibrate"),
    "noting the shapes": (ShapeGuard, "update"),
    "noting the event": (EventLog, "add"),
    "forgetting the best checkpoint": (filter_pruning, "reset_best"),
    "copying the unpruned network": (RunReport, "_look_at_unpruned"),
}
SECONDS = 60
QUICK = ("finding the network", "scoring", "shrinking", "noting the event")
"""One fault of each kind of moment; the others are among the slow tests."""


def fit(rank: int, folder: Path) -> str:
    """Fit and prune; return the error that ended it."""
    torch.manual_seed(5)
    report, cut = RunReport(latency_repeats=0), pruning((1, 2), recalibration_batches=2)
    strategy = DDPStrategy(process_group_backend="gloo")
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "default_root_dir": str(folder)}
    data = images()
    sampler = DistributedSampler(data, 2, rank, shuffle=False)
    try:
        trainer(report, cut, **options).fit(TinyModule(), DataLoader(data, 4, sampler=sampler), DataLoader(data, 8))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank: int, names: Sequence[str], folder: str, port: int) -> None:
    """Run a fit for each of these faults, which the second process has."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }  # fmt: skip
    ends = {}
    for name, (owner, attribute) in ((name, FAULTS[name]) for name in names):

        def fails(*args: Any, name: str = name, **options: Any) -> Any:
            raise MemoryError(f"no memory for {name}")

        start = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(owner, attribute, fails)
            ends[name] = fit(rank, Path(folder) / name), time.monotonic() - start
    Path(folder, f"{rank}.json").write_text(json.dumps(ends), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, tuple[str, float]]]:
    items = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["name"] for item in items]  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("faults")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    warm.spawn(work, names, str(folder), port)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_both_processes_end_with_the_error_of_the_one_that_failed(
    name: str, ends: list[dict[str, tuple[str, float]]]
) -> None:
    (first, seconds), (second, _) = ends[0][name], ends[1][name]
    assert second == f"MemoryError: no memory for {name}"
    assert first == f"ProcessError: process 1 failed, so all processes stop: {second}"
    assert seconds < SECONDS
