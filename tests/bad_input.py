"""What the tests of bad input share: projects with faults, commands on them, and what must stay as it was."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.cli import main
from infoprune.criteria import CRITERIA, L1
from infoprune.errors import InfopruneError
from tests.tiny import TinyModule, identical, loader

X = torch.zeros(1, 3, 8, 8)


# -- what must stay as it was -----------------------------------------------------------------------------------------


class Snapshot:
    """A model and its optimizers: bits, shapes, parameter objects, train/eval flags; groups and state."""

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.model, self.optimizers = model, optimizers
        self.tensors = [(name, tensor, tensor.detach().clone()) for name, tensor in self._tensors()]
        self.looks = repr(model), [module.training for module in model.modules()]
        self.groups = [[list(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
        self.states = [copy.deepcopy(list(optimizer.state.values())) for optimizer in optimizers]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.model.named_parameters(), *self.model.named_buffers()]

    def check(self) -> None:
        """Assert that nothing has changed since."""
        now = self._tensors()
        assert [name for name, _ in now] == [name for name, _, _ in self.tensors]
        for (name, tensor), (_, same, value) in zip(now, self.tensors, strict=True):
            assert tensor is same, name
            assert identical(tensor.detach(), value), name
        assert (repr(self.model), [module.training for module in self.model.modules()]) == self.looks
        for optimizer, groups, states in zip(self.optimizers, self.groups, self.states, strict=True):
            for group, parameters in zip(optimizer.param_groups, groups, strict=True):
                assert [id(p) for p in group["params"]] == [id(p) for p in parameters]
            for state, before in zip(optimizer.state.values(), states, strict=True):
                assert state.keys() == before.keys()
                assert all(not torch.is_tensor(v) or identical(state[k], v) for k, v in before.items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refused(error: type[Exception], message: str, *models: Any, folder: Path | None = None) -> Iterator[None]:
    """Expect an error of ours, and models (each alone or with its optimizers) and files as they were."""
    kept = [Snapshot(*(given if isinstance(given, tuple) else (given,))) for given in models]
    written = files(folder) if folder is not None else {}
    with pytest.raises(error, match=message) as caught:
        yield
    assert isinstance(caught.value, InfopruneError)
    for snapshot in kept:
        snapshot.check()
    assert folder is None or files(folder) == written


# -- the cases --------------------------------------------------------------------------------------------------------


class Project(TinyModule):
    """A user's module that brings its data and knows how it was after its last step, for comparison."""

    made: ClassVar[list[Project]] = []

    def __init__(self) -> None:
        super().__init__()
        self.spoil()
        self.before = Snapshot(self)
        Project.made.append(self)

    def spoil(self) -> None:
        """For modules that are broken from the start."""

    def train_dataloader(self) -> Any:
        return loader()

    def on_train_batch_end(self, *_: Any) -> None:
        self.before = Snapshot(self, *self.trainer.optimizers)


class NaNWeight(Project):
    def spoil(self) -> None:
        self.net.conv1.weight.data[0, 0, 0, 0] = float("nan")


class InfiniteBias(Project):
    """In a layer that is not scored, so that no criterion would notice."""

    def spoil(self) -> None:
        self.net.head.bias.data[1] = float("inf")


class NaNStatistics(Project):
    def spoil(self) -> None:
        self.net.norm.running_var[5] = float("nan")


class NothingToPrune(Project):
    def spoil(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())


class NoLayers(Project):
    """Only a scale and a pooling: nothing that has filters."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.mean((2, 3))

    def spoil(self) -> None:
        self.net = self.Net()


class NoOtherThanZero(L1):
    """A criterion of the user's that divides by zero."""

    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.sum((1, 2)) / 0 * 0


HALF = {"filters": 0.5}
L1_AT_1 = {"criterion": "l1", "schedule": 1, **HALF}


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, one thread, and a criterion of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    monkeypatch.setattr(Project, "made", [])
    monkeypatch.setitem(CRITERIA._classes, "no_other_than_zero", NoOtherThanZero)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def command(*options: str, project: type[Project] = Project, **pruning: Any) -> int:
    """`infoprune fit` of a project with FilterPruning."""
    words = ["fit", f"--model=tests.bad_input.{project.__name__}", *QUIET, "--trainer.max_epochs=3", *options]
    if pruning:
        words.append("--trainer.callbacks+=FilterPruning")
    for name, value in pruning.items():
        words.append(f"--trainer.callbacks.{name}={value if isinstance(value, str) else json.dumps(value)}")
    return main(words)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that says what is wrong."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("infoprune: error: ")]
    return line
