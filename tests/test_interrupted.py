"""Processes that are killed or spawned, and models that are sharded: what needs a Python of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import TinyModule, loader, pruning, same, trainer

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent

KILLED = """
import os, signal, sys
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from fsspec.implementations.local import LocalFileOpener
from infoprune.callbacks.engine import surgery
from infoprune.criteria import L1
from infoprune.structure.tensors import OwnedTensor
from tests.tiny import TinyModule, loader, pruning, trainer

torch.set_num_threads(1)
folder, when = sys.argv[1:]
calls = 0

def dying(function, at):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

class Criterion(L1):
    pass

if when == "scoring":
    Criterion.layer_scores = dying(L1.layer_scores, at=2)  # at the second event
elif when == "surgery":
    whole = surgery.shrink
    def half(*args):
        OwnedTensor.replace = dying(OwnedTensor.replace, at=3)  # some layers are narrow by then, others not
        return whole(*args)
    surgery.shrink = half
elif when == "writing":
    write = LocalFileOpener.write
    stop = dying(lambda *_: None, at=4)  # epoch 1, its second file
    def half(self, data):
        write(self, data[: len(data) // 2])
        self.f.flush()
        stop()
        return write(self, data[len(data) // 2 :])
    LocalFileOpener.write = half

torch.manual_seed(1)
keep = ModelCheckpoint(folder, save_last=True, every_n_epochs=1)
trainer(pruning((1, 2), criterion=Criterion()), keep, epochs=4, enable_checkpointing=True).fit(TinyModule(), loader())
"""


def python(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("when", ["scoring", "surgery", "writing"])
def test_a_killed_run_ends_in_the_same_model(when: str, tmp_path: Path) -> None:
    """SIGKILL during scoring, in the middle of the surgery, or while a checkpoint is written: the last checkpoint
    leads to the same final model as a run that was not killed."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    whole = TinyModule()
    trainer(pruning((1, 2)), epochs=4).fit(whole, loader())

    done = python(tmp_path, KILLED, str(tmp_path / "run"), when)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    module = TinyModule()
    trainer(pruning((1, 2)), epochs=4).fit(module, loader(), ckpt_path=tmp_path / "run" / "last.ckpt")
    assert same(module, whole)


SPAWNED = """
import atexit, sys
import infoprune
from lightning.pytorch import Callback
from torch.distributed import destroy_process_group
from tests.tiny import TinyModule, loader, pruning, trainer

class Leaves(Callback):
    def teardown(self, trainer, pl_module, stage):
        atexit.register(destroy_process_group)

if __name__ == "__main__":
    module = TinyModule()
    infoprune.attach(module)
    trainer(pruning((1,)), Leaves(), strategy=sys.argv[1], devices=2).fit(module, loader())
    assert not infoprune.plan_of(module).is_empty
    assert 0 < module.net.stem.out_channels < 12
    print("came back pruned")
"""


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_an_attached_module_comes_back_pruned_from_other_processes(strategy: str, tmp_path: Path) -> None:
    """Trap 9: the way out that the refusal of ddp_spawn, ddp_fork and ddp_notebook names."""
    done = python(tmp_path, SPAWNED, strategy)
    assert "came back pruned" in done.stdout, done.stderr[-2000:]


SHARDED = """
import sys
import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
import infoprune
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer

class Sharded(TinyModule):
    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is not None:
            return
        self.net = TinyNet()
        infoprune.load(sys.argv[1], self.net)
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

make = lambda: dict(strategy=ModelParallelStrategy(process_group_backend="gloo"), devices=1)
module = Sharded()
trainer(epochs=1, **make()).fit(module, loader())
print("width", module.net.stem.out_channels, type(module.net.stem.weight).__name__)
try:
    trainer(pruning((1,)), **make()).fit(Sharded(), loader())
except infoprune.errors.ConfigurationError as error:
    print("refused:", error)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this PyTorch's fully_shard needs a GPU")
def test_sharded_models_are_pruned_before_they_are_wrapped(tmp_path: Path) -> None:
    """Trap 9: the recipe of the error message, with ModelParallelStrategy on the CPU: load a pruned network (or prune,
    or shrink by a plan) in configure_model, before fully_shard; FilterPruning itself is refused at setup."""
    import infoprune
    from tests.tiny import TinyNet

    net = TinyNet()
    infoprune.prune(net, torch.zeros(1, 3, 8, 8), "l1", filters=0.5)
    infoprune.save(net, tmp_path / "net.pt")
    done = python(tmp_path, SHARDED, str(tmp_path / "net.pt"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "width 6 DTensor" in done.stdout
    assert "refused: ModelParallelStrategy shards the parameters" in done.stdout
