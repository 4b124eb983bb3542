"""Measuring the loss of cuts on two processes: groups are shared out, plans are equal, one failure ends both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import infoprune
from infoprune.allocation.measure_loss import LossMeter
from infoprune.models import CifarResNet
from tests import warm

OPTIONS = {"name": "information_loss", "images": 90, "rounds": 2}


IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Brittle(nn.Module):
    """Takes the root of a sum over the second layer, which is no longer positive once a quarter of its filters go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1, bias=False)
        nn.init.ones_(self.head.weight)
        self.least = 0.0
        with torch.no_grad():
            self.least = 0.99 * self(IMAGES).square().min().item()

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.second(self.first(x)).abs()).mean(dim=(2, 3)) - self.least).sqrt()


def pruned() -> dict[str, Any]:
    """Prune a small residual network; count the cuts that this process measures itself."""
    torch.manual_seed(0)
    net = CifarResNet(depth=8).eval()
    data = [torch.randn(n, 3, 16, 16) for n in (50, 40)]
    counted: list[str] = []
    measure = LossMeter._added

    def counting(meter: LossMeter, name: str, *arguments: Any) -> float:
        counted.append(name)
        return measure(meter, name, *arguments)

    LossMeter._added = counting  # type: ignore[method-assign]
    try:
        result = infoprune.prune(net, data[0][:1], "l1", macs=0.5, allocation=OPTIONS, data=data)
    finally:
        LossMeter._added = measure  # type: ignore[method-assign]
    assert result.curves is not None
    return {"plan": result.plan.to_dict(), "curves": result.curves.to_dict(), "measured": counted}


def failing() -> str:
    try:
        infoprune.prune(Brittle(), IMAGES[:1], "l1", macs=0.5, allocation=OPTIONS, data=[IMAGES], frozen=["first"])
    except infoprune.errors.InfopruneError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({**pruned(), "failure": failing()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    warm.spawn(work, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return pruned()


def test_both_processes_plan_what_one_would(two_processes: list[dict[str, Any]], alone: dict[str, Any]):
    first, second = two_processes
    assert first["plan"] == second["plan"] == alone["plan"]
    assert first["curves"] == second["curves"]
    for mine, theirs in zip(first["curves"]["rounds"], alone["curves"]["rounds"], strict=True):
        assert mine["widths"] == theirs["widths"]
        for name, curve in theirs["curves"].items():
            assert mine["curves"][name] == pytest.approx(curve, rel=1e-3, abs=1e-7), name


def test_the_groups_are_shared_out(two_processes: list[dict[str, Any]], alone: dict[str, Any]):
    first, second = (set(found["measured"]) for found in two_processes)
    assert first
    assert second
    assert not first & second
    assert len(two_processes[0]["measured"]) + len(two_processes[1]["measured"]) == len(alone["measured"])


def test_a_failure_on_one_process_ends_both_and_names_the_group(two_processes: list[dict[str, Any]]):
    first, second = (found["failure"] for found in two_processes)
    reason = "DataError: allocation 'information_loss': the outputs of the model with second at "
    assert first.startswith(reason)
    assert second.startswith(f"ProcessError: process 0 failed, so all processes stop: {reason}")
