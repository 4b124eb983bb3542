"""Scoring on two processes gives what one process gives, and a failure on one ends both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import infoprune
from infoprune.criteria import Shapley, get_criterion
from infoprune.criteria.measures.concentration import Concentration
from infoprune.criteria.measures.feature_guided import guide_capacity
from infoprune.criteria.shapley.score_checkpoint import ScoreCheckpoint
from infoprune.errors import DataError
from tests import warm
from tests.test_criteria_importance_sampling import CLASSICAL, sure_network

CRITERIA: list[dict[str, Any]] = [
    {"name": "hrank"},
    {"name": "chip", "images": 19},
    {"name": "taylor"},
    {"name": "taylor", "of": "weights"},
    {"name": "grouped_taylor", "images": 19},
    {"name": "hessian", "images": 19},
    {"name": "least_squares", "images": 19},
    {"name": "shapley", "images": 19},
    {"name": "shapley", "images": 19, "payoff": "probability", "absent": "zero", "min_coalition": 0.0},
    {"name": "shapley", "estimator": "complementary", "remove": 0.5, "required_certainty": 0.0, "rounds": 3},
]
CONCENTRATIONS = [
    Concentration(rank="map", bins=8),
    Concentration(rank="layer", entropy="act", bins=8),
    Concentration(rank="raw", entropy="pix"),
    Concentration(entropy="chan", images=19),
]


def scored() -> dict[str, Tensor]:
    """Everything that looks at images, on the same 21 images everywhere."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )
    data = [(torch.randn(n, 3, 8, 8), torch.randint(4, (n,))) for n in (9, 1, 11)]
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    found: dict[str, Tensor] = {}
    for spec in CRITERIA:
        for name, scores in get_criterion(spec)(net, structure, data).items():
            found[f"{spec} {name}"] = scores
    for how in CONCENTRATIONS:
        for name, value in how.measure(net, structure, data).items():
            found[f"{how} {name}"] = torch.tensor([value.rank, value.entropy])
    for name, entropies in guide_capacity(net, structure, data).entropies.items():
        found[f"guide {name}"] = entropies
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    for images in (64, 37):
        classical = Shapley(images=images, **CLASSICAL)
        found[f"important images of {images}"] = classical(net, structure, data)["0"]
    return found


def going_on_apart(rank: int, folder: str) -> str:
    """Both processes are interrupted after the second batch, and process 1 loses what it knew."""
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    shapley = Shapley(partial_file=f"{folder}/partial.pt")
    save = ScoreCheckpoint.save
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(ScoreCheckpoint, "save", lambda scores, batches: interrupted(save, scores, batches))
        shapley(net, structure, data)
    if rank == 1:
        Path(f"{shapley.partial_file}.1").unlink()
    try:
        shapley(net, structure, data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def interrupted(save: Callable[[ScoreCheckpoint, int], None], scores: ScoreCheckpoint, batches: int) -> None:
    save(scores, batches)
    if batches == 2:
        raise KeyboardInterrupt


def failing(rank: int) -> str:
    """Process 1 meets a bad batch; both must stop."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    images = torch.randn(4, 3, 8, 8)
    if rank == 1:
        images[1] = float("nan")
    try:
        get_criterion("hrank")(net, structure, [images])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"scores": scored(), "failure": failing(rank), "apart": going_on_apart(rank, folder)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    warm.spawn(work, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return scored()


def test_two_processes_score_as_one_does(two_processes: list[dict[str, Any]], alone: dict[str, Tensor]):
    for result in two_processes:
        assert set(result["scores"]) == set(alone)
        for name, values in alone.items():
            assert torch.allclose(result["scores"][name].double(), values.double(), rtol=1e-4, atol=1e-7), name


def test_a_failure_on_one_process_ends_both(two_processes: list[dict[str, Any]]):
    assert two_processes[0]["failure"].startswith(
        "ProcessError: process 1 failed, so all processes stop: ConfigurationError: 0: its activations hold"
    )
    assert two_processes[1]["failure"].startswith("ConfigurationError: 0: its activations hold")


def test_more_processes_than_images_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("infoprune.calibration.world_size", lambda: 3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3))
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match="2 calibration images do not suffice for 3 processes"):
        get_criterion("hrank")(net, structure, [torch.randn(2, 3, 8, 8)])


def test_processes_that_would_go_on_from_different_batches_are_refused(two_processes: list[dict[str, Any]]):
    for result in two_processes:
        assert "CheckpointError" in result["apart"]
        assert "are not of one batch; delete them" in result["apart"]


def test_important_images_were_told_from_the_others(alone: dict[str, Tensor]):
    net, data = sure_network()
    structure = infoprune.trace(net, torch.zeros(1, 3, 4, 4))
    assert not torch.allclose(alone["important images of 64"], Shapley(pilot=0)(net, structure, data)["0"])
