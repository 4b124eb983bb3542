"""Scripts that know nothing of infoprune load checkpoints of pruned models, in processes of their own."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import infoprune
from infoprune.marker import MARKER, is_marker, mark, unmarked
from tests import warm
from tests.tiny import TinyModule, TinyNet, averaging, loader, pruning, same, trainer, widths

ROOT = Path(__file__).resolve().parents[1]

PROJECT = """
import json, sys
{extra}
import lightning.pytorch as pl
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.conv1, self.conv2 = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))

class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        self.log("mean", self(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

path, module = sys.argv[1], Lit()
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8)), 2)
fit = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False)
state = torch.load(path, weights_only=True)["state_dict"]
outcomes = {{}}
for way, load in {ways}.items():
    module = Lit()
    try:
        exec(load)
        outcomes[way] = [m.weight.shape[0] for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    except RuntimeError as error:
        outcomes[way] = str(error)
assert {known}("infoprune" in sys.modules)
print(json.dumps(outcomes))
"""

WAYS = {
    "a trainer": "fit.test(module, data, ckpt_path=path, verbose=False)",
    "load_from_checkpoint": "module = Lit.load_from_checkpoint(path)",
    "load_state_dict": "module.load_state_dict(state)",
    "other names": 'module.net.load_state_dict({key.replace("net.", ""): value for key, value in state.items()})',
    "a prefix cut off": 'module.net.load_state_dict({key[len("net."):]: value for key, value in state.items()})',
    "a plain dict": "module.load_state_dict(dict(state))",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    keep = ModelCheckpoint(folder, filename="whole")
    small = ModelCheckpoint(folder, filename="small", save_weights_only=True, every_n_epochs=2)
    trainer(pruning(1), keep, small, epochs=2, enable_checkpointing=True).fit(TinyModule(), loader())
    return folder / "whole.ckpt"


WITHOUT = ("a trainer", "load_from_checkpoint", "a prefix cut off")
WITH = ("a trainer", "other names")


def run(extra: str, ways: Sequence[str], path: Path) -> dict[str, Any]:
    """Load the checkpoint in these ways, one after another in one process; return the widths or the error of each."""
    chosen = {way: WAYS[way] for way in ways}
    script = PROJECT.format(extra=extra, ways=chosen, known="" if extra else "not ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = warm.python("-c", script, path, env=environment, cwd=path.parent)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without(checkpoint: Path) -> dict[str, Any]:
    return run("", WITHOUT, checkpoint)


@pytest.fixture(scope="module")
def with_the_line(checkpoint: Path) -> dict[str, Any]:
    return run("import infoprune", WITH, checkpoint)


@pytest.mark.parametrize("way", WITHOUT)
def test_without_infoprune_the_error_says_first_what_to_do(way: str, without: dict[str, Any]) -> None:
    message = without[way]
    assert message.startswith("Error(s) in loading state_dict")
    assert "infoprune: add 'import infoprune'" in message.partition("size mismatch")[0]


@pytest.mark.parametrize("way", WITH)
def test_with_the_line_added_it_works(way: str, with_the_line: dict[str, Any], checkpoint: Path) -> None:
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    names = ("stem", "conv1", "conv2", "head")
    assert with_the_line[way] == [stored[f"net.{name}.weight"].shape[0] for name in names]


@pytest.mark.parametrize("kind", ["whole", "small"])
def test_every_form_of_the_weights_loads_where_infoprune_is_imported(kind: str, checkpoint: Path) -> None:
    state = torch.load(checkpoint.with_stem(kind), weights_only=True)["state_dict"]
    assert MARKER in state
    one, two, three = TinyModule(), TinyModule(), TinyNet()
    one.load_state_dict(state)
    two.load_state_dict(dict(state), strict=True)
    three.load_state_dict({key[len("net.") :]: value for key, value in state.items()})
    assert widths(one) == widths(two) == widths(three) != widths(TinyModule())
    assert same(one, two)
    assert same(one.net, three)


def test_the_entry_is_in_checkpoints_only(checkpoint: Path) -> None:
    module = TinyModule()
    callback = pruning(1)
    trainer(callback, epochs=2).fit(module, loader())
    assert not any(map(is_marker, module.state_dict()))
    fit = trainer(pruning(1), epochs=3)
    again = TinyModule()
    fit.fit(again, loader(), ckpt_path=checkpoint)
    assert not any(map(is_marker, again.state_dict()))
    assert infoprune.plan_of(again) != infoprune.plan_of(TinyModule())


def test_an_averaged_model_is_marked_and_loads_without_its_metadata(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="average")
    module = TinyModule()
    callbacks = (pruning(1), averaging(), keep)
    trainer(*callbacks, epochs=2, enable_checkpointing=True).fit(module, loader())
    state = torch.load(tmp_path / "average.ckpt", weights_only=True)["state_dict"]
    fresh = TinyModule()
    fresh.load_state_dict(state)
    assert widths(fresh) == widths(module)
    again = TinyModule()
    fit = trainer(pruning(1), averaging(), epochs=3)
    fit.fit(again, loader(), ckpt_path=tmp_path / "average.ckpt")
    assert widths(again) == widths(module)


def test_a_model_that_is_not_pruned_is_not_marked(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning(1), keep, epochs=2, enable_checkpointing=True).fit(TinyModule(), loader())
    states = [torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"] for epoch in (0, 1)]
    assert [MARKER in state for state in states] == [False, True]


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(0, dtype=torch.uint8), "text", None])
def test_an_entry_that_is_damaged_is_left_out(value: Any) -> None:
    state: OrderedDict[str, Any] = TinyNet().state_dict()  # type: ignore[assignment]
    state[MARKER] = value
    rest, plan = unmarked(state)
    assert plan is None
    assert not any(map(is_marker, rest))
    TinyNet().load_state_dict(state)


def test_a_plan_of_another_architecture_is_refused_in_words() -> None:
    net = TinyNet()
    infoprune.prune(net, torch.zeros(1, 3, 8, 8), "l1", filters=0.5)
    state: dict[str, Any] = dict(net.state_dict())
    mark(state, infoprune.plan_of(net))
    with pytest.raises(RuntimeError, match=r"size mismatch[\s\S]*infoprune"):
        TinyNet(inner=20).load_state_dict(state)
