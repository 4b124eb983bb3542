"""Two processes: they prune the same filters, and stay equal to each other and to one process on the joined batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from tests import ddp_run, warm
from tests.tiers import slow

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")

HERE = Path(__file__).resolve().parent
QUICK = [name for name in ("sgd", "accumulate", "unused", "noisy", "fitted", "ema") if name in ddp_run.SCENARIOS]
MORE = [name for name in ddp_run.SCENARIOS if name not in (*QUICK, "fails")]
SCENARIOS = [*QUICK, *map(slow, MORE)]
RESUMED = [name for name in ("sgd@epoch=0.ckpt", "ema@epoch=1.ckpt") if name.partition("@")[0] in QUICK]


def launch(folder: Path, *scenarios: str) -> list[CompletedProcess[str]]:
    """Run a script in two processes, with the variables that ``torchrun`` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    command = [str(HERE / "ddp_run.py"), str(folder), *scenarios]
    return warm.together([command, command], [environment | {"LOCAL_RANK": str(rank)} for rank in range(2)])


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CompletedProcess[str]]]:
    """Several scenarios in one launch, since a launch takes longer than they do; the one that fails comes last."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, launch(folder, *QUICK, *RESUMED, "fails")


@pytest.fixture(scope="module")
def launched_more(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CompletedProcess[str]]]:
    """The slow scenarios."""
    folder = tmp_path_factory.mktemp("more")
    return folder, launch(folder, *MORE)


@pytest.fixture
def folder(request: pytest.FixtureRequest, name: str) -> Path:
    """Where the processes of a scenario have written what they ended with."""
    folder, done = request.getfixturevalue("launched_more" if name in MORE else "launched")
    assert (folder / f"{name}-1.pt").is_file(), done[0].stderr[-3000:]
    return folder


def ends(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def difference(a: Any, b: Any) -> float:
    """The largest difference between two trees of tensors and numbers of the same form."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        return (a.double() - b.double()).abs().max().item()
    return 0.0 if a == b else float("inf")


@pytest.mark.parametrize("name", SCENARIOS)
def test_processes_agree(name: str, folder: Path) -> None:
    """Traps 4 and 5: without a rebuilt wrapper, and with find_unused_parameters, gradients silently stop being
    averaged; scores that differ between processes leave gradients equal but not the optimizers' state; an old wrapper
    that somebody holds must stay inert. So weights, gradients *and* optimizer state are equal on both."""
    first, second = ends(folder, name)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert len(first["kept"]) == 2
    assert first["kept"] == second["kept"]
    assert first["weights"]["net.stem.weight"].shape[0] < 12
    for what in ("gradients", "state"):
        assert difference(first[what], second[what]) == 0.0, what
    learnt = [{k: v for k, v in end["weights"].items() if "running" not in k} for end in (first, second)]
    assert difference(*learnt) == 0.0


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ("noisy", "fitted")])
def test_two_processes_equal_one_on_the_joined_batch(name: str, folder: Path, tmp_path: Path) -> None:
    """Trap 4: the same two events in one process on batches of both.

    Layers are fitted with the statistics of the loader's batches, which here are half as large on two processes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ddp_run.run(name, tmp_path, 1)
    torch.set_num_threads(threads)
    both, _ = ends(folder, name)
    assert alone["kept"] == both["kept"]
    tolerance = 1e-12 if both["weights"]["net.head.bias"].dtype is torch.float64 else 1e-5
    assert difference(alone["weights"], both["weights"]) < tolerance
    assert difference(alone["state"], both["state"]) < tolerance


def test_nothing_of_ours_is_logged_without_being_synchronised(
    launched: tuple[Path, list[CompletedProcess[str]]],
) -> None:
    """Lightning warns of metrics that are averaged over an epoch and not over the processes."""
    _, done = launched
    assert "sync_dist=True" in done[0].stderr  # of the project's own val/loss, so the warning would be seen
    assert "self.log('prune/" not in done[0].stderr


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_processes_end_with_the_same_bits(name: str, folder: Path) -> None:
    """Trap 7, with two processes: from before the events, and from after the first with an averaged copy."""
    for whole, resumed in zip(ends(folder, name.partition("@")[0]), ends(folder, name), strict=True):
        assert difference(whole["weights"], resumed["weights"]) == 0.0
        assert difference(whole["state"], resumed["state"]) == 0.0


def test_one_process_that_fails_stops_all(launched: tuple[Path, list[CompletedProcess[str]]]) -> None:
    """A process that raises while it scores would leave the others waiting for its scores: all stop with its error."""
    folder, done = launched
    assert all(process.returncode != 0 for process in done)
    told = [" ".join(process.stderr.split()) for process in done]  # tracebacks may be cut to the terminal's width
    assert "ProcessError: process 1 failed, so all processes stop" in told[0]
    assert "OSError: the disk of this machine is full" in told[1]
    assert not list(folder.glob("fails-*.pt"))
