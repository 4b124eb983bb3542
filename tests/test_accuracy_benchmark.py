"""The benchmark of accuracy: its synthetic tasks, the rivals' cuts, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import infoprune
from benchmarks import accuracy_table
from benchmarks.tasks import CLASSES, Measurer, Task, UNet, accuracy, explained, mean_iou, shapes
from infoprune.models import CifarResNet


def test_shapes_and_their_targets_agree() -> None:
    images, labels, targets = shapes(50, seed=0)
    assert (images.shape, labels.shape, targets.shape) == ((50, 1, 32, 32), (50, 32, 32), (50, 3))
    assert labels.unique().tolist() == list(range(CLASSES))
    assert targets.abs().max() <= 1
    rows = torch.arange(32.0)[None, :, None].expand(50, 32, 32)
    visible = (labels == 1).float()
    middle = (rows * visible).sum(dim=(1, 2)) / visible.sum(dim=(1, 2)).clamp(min=1)
    whole = visible.sum(dim=(1, 2)) > 0.9 * torch.pi * ((targets[:, 2] + 1) * 2.5 + 3) ** 2  # hardly covered
    assert whole.any()
    assert torch.allclose(middle[whole], (targets[whole, 0] + 1) * 16, atol=1.0)
    assert not torch.equal(images, shapes(50, seed=1)[0])


def test_scores_of_perfect_and_of_empty_outputs() -> None:
    labels = torch.tensor([[[0, 1], [2, 2]]])
    perfect = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
    assert mean_iou(perfect, labels) == 100
    assert mean_iou(torch.zeros_like(perfect), labels) == pytest.approx(100 / 4 / 3)
    targets = torch.randn(20, 3)
    assert explained(targets, targets) == 100
    assert explained(targets.mean(dim=0).expand(20, 3), targets) == pytest.approx(0, abs=1e-4)
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75


@pytest.mark.parametrize("network", [UNet, Measurer])
def test_the_networks_can_be_cut_anywhere(network: Any) -> None:
    model = network()
    result = infoprune.prune(model, torch.randn(2, 1, 32, 32), "l1", macs=0.3, round_to=1)
    assert result.after.macs <= 0.3 * result.before.macs
    assert infoprune.trace(model, torch.randn(2, 1, 32, 32)).cost().macs == result.after.macs


def task() -> Task:
    """A network too small to be good at anything."""
    data = torch.randn(40, 3, 8, 8), torch.randint(10, (40,))
    model = CifarResNet(8).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # else all scales tie
    return Task("small", model, data, data, F.cross_entropy, accuracy, "accuracy", batch=16)


def test_batches_repeat_the_images_until_there_were_enough_and_follow_the_seed() -> None:
    parts = list(task().batches(90, seed=0))
    assert [len(labels) for _, labels in parts] == [16, 16, 16, 16, 16, 10]
    first = torch.cat([images for images, _ in parts])[:40].flatten(1)
    assert len(first.unique(dim=0)) == 40
    made = task()
    one, same, other = (next(made.batches(16, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_tuning_learns_and_leaves_the_original_alone(distil: float) -> None:
    made = task()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    model = CifarResNet(8)
    start = made.evaluate(model)
    made.tune(model, 30, seed=0, rate=0.1, warm_up=3, distil=distil)
    assert made.evaluate(model) > start or distil
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("importance", "sharing"), [("magnitude", "local"), ("taylor", "global"), ("bn_scale", "isomorphic")]
)
def test_the_rivals_meet_the_budget_and_leave_streams_whole(importance: str, sharing: str) -> None:
    rivals = pytest.importorskip("benchmarks.rivals", reason="needs torch-pruning")
    made = task()
    data = list(made.batches(32, 0))
    pruned = rivals.cut(made.model, made.example, importance, sharing, 0.5, data, made.loss)
    share = infoprune.trace(pruned, made.example).cost().macs / infoprune.trace(made.model, made.example).cost().macs
    assert 0.35 < share <= 0.5
    assert pruned.layer1[0].conv2.out_channels == made.model.layer1[0].conv2.out_channels
    assert pruned.layer1[0].conv1.out_channels < made.model.layer1[0].conv1.out_channels
    assert pruned(made.example).shape == (1, 10)


def row(method: str, seed: int = 0, steps: int = 100, **values: Any) -> dict[str, Any]:
    """A measured cell."""
    shared = {"task": "net", "metric": "accuracy", "budget": 0.5, "macs": 0.5, "params": 0.6}
    return {**shared, "method": method, "seed": seed, "steps": steps, "cut": 10.0, "recalibrated": 50.0, **values}


def test_the_table_ranks_methods_and_names_what_is_missing(tmp_path: Path) -> None:
    rows = [row("a", tuned=80.0), row("b", tuned=82.0), row("b", seed=1, tuned=84.0), row("b", steps=400, tuned=88.0)]
    failed = {key: row("c")[key] for key in ("task", "metric", "budget", "method", "seed", "steps")}
    text = accuracy_table.write(
        [*rows, {**failed, "failed": "it broke"}], tmp_path, ["a", "b", "c", "d"], ["net", "other"]
    )
    lines = text.splitlines()
    at = lines.index("| method | MACs | parameters | as cut | recalibrated | 100 steps | 400 steps | seeds |")
    assert lines[at + 2] == "| b | 50.0% | 60.0% | 10.0 (10.0…10.0) | 50.0 (50.0…50.0) | 83.0 (82.0…84.0) | 88.0 | 2 |"
    assert lines[at + 3] == "| a | 50.0% | 60.0% | 10.0 | 50.0 | 80.0 | – | 1 |"
    assert "Failed: c: it broke." in text
    assert "Not measured: d." in text
    assert text.endswith("Networks not measured: other.\n")
    assert "</svg>" in (tmp_path / "accuracy.svg").read_text(encoding="utf-8")


def test_the_summary_is_bold_only_where_all_seeds_are_ahead_of_every_rival() -> None:
    def row(method: str, seed: int, tuned: float, task: str = "net", steps: int = 100) -> dict[str, Any]:
        return {"task": task, "method": method, "budget": 0.5, "steps": steps, "seed": seed, "tuned": tuned}

    ours = [row("default, reconstructed", 0, 80.0), row("default, reconstructed", 1, 82.0)]
    rivals = [row("TP local, taylor", 0, 60.0), row("TP local, magnitude", 0, 79.0), row("uniform, l1", 0, 99.0)]
    late = row("TP local, taylor", 0, 95.0, steps=400)
    assert "| net | **81.0** (79.0) |" in accuracy_table.summary([*ours, *rivals, late])
    assert "| net | 81.0 (79.6) |" in accuracy_table.summary([*ours, *rivals, row("TP local, magnitude", 1, 80.2)])
    assert "| other | – (70.0) |" in accuracy_table.summary([*ours, row("TP local, l1", 0, 70.0, task="other")])
