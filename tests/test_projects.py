"""Strangers' projects: FilterPruning among the callbacks is the only change, and everything else still works."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import infoprune
from tests.tiny import same

PROJECTS = ["classifier", "segmentation", "gan", "backbone_image_classifier"]
EPOCHS = 4


pytestmark = pytest.mark.usefixtures("one_thread")


def live_through(project: Any, folder: Path) -> None:
    """Train and prune, resume, test, load, export."""
    pl: Any = project.pl
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    def trainer(folder: Path) -> tuple[Any, infoprune.FilterPruning]:
        pruning = infoprune.FilterPruning("capacity_independence", macs=0.5, schedule=[1, 2])
        callbacks = [*project.make_callbacks(folder), pruning]
        return pl.Trainer(max_epochs=EPOCHS, callbacks=callbacks, **quiet), pruning

    pl.seed_everything(3, verbose=False)
    run, pruning = trainer(folder / "run")
    model = project.make_model()
    run.fit(model, datamodule=project.make_data())
    assert pruning.unpruned is not None
    assert [event.epoch for event in pruning.history] == [1, 2]
    share = pruning.history[-1].macs / pruning.unpruned.macs
    assert 0.4 < share <= 0.5, share
    assert infoprune.trace(pruning.network(model), pruning.inputs).cost().macs == pruning.history[-1].macs

    (tested,) = run.test(model, datamodule=project.make_data(), verbose=False)
    last = folder / "run" / f"epoch={EPOCHS - 1}.ckpt"
    again, _ = trainer(folder / "again")
    (reloaded,) = again.test(project.make_model(), datamodule=project.make_data(), ckpt_path=last, verbose=False)
    assert reloaded == pytest.approx(tested, abs=1e-6)

    resumed, history = trainer(folder / "resumed")
    fresh = project.make_model()
    resumed.fit(fresh, datamodule=project.make_data(), ckpt_path=folder / "run" / "epoch=1.ckpt")
    assert [event.epoch for event in history.history] == [1, 2]
    assert resumed.current_epoch == EPOCHS

    loaded = infoprune.load_from_checkpoint(type(model), last)
    assert same(loaded, model)
    inputs = (project.example(),)
    with torch.no_grad():
        expected = loaded.eval()(*inputs)
        exported = torch.export.export(pruning.network(loaded).eval(), inputs)
        assert torch.allclose(exported.module()(*inputs), expected, atol=1e-5)


LONG = ("segmentation", "gan", "backbone_image_classifier")
"""The quick suite prunes projects of the first two kinds in tests/test_strangers.py."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PROJECTS]
)
def test_project(name: str, tmp_path: Path) -> None:
    """Train, prune, resume, test, load and export."""
    live_through(importlib.import_module(f"tests.projects.{name}"), tmp_path)


MIRROR = """
import sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from infoprune import FilterPruning  # before the user's own import, as import sorters put it
import torch
from tests.test_projects import PROJECTS, live_through
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name in PROJECTS:
    module = __import__(name)
    assert module.pl.__name__ == "pytorch_lightning"
    live_through(module, folder / "runs" / name)
    print("alive:", name)
"""


@pytest.mark.slow
def test_projects_written_against_pytorch_lightning(tmp_path: Path) -> None:
    """The mirror package ``pytorch_lightning`` refuses objects of ``lightning.pytorch``; projects that import it work
    alike, whichever is imported first."""
    pytest.importorskip("pytorch_lightning")
    here = Path(__file__).resolve().parent
    for name in PROJECTS:
        code = (here / "projects" / f"{name}.py").read_text(encoding="utf-8")
        changed = code.replace("import lightning.pytorch as pl", "import pytorch_lightning as pl")
        assert changed != code
        (tmp_path / f"{name}.py").write_text(changed, encoding="utf-8")
    (tmp_path / "main.py").write_text(MIRROR, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "main.py", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("alive:") == len(PROJECTS)
