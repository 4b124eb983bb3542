"""Files that cannot be read, or that cannot be written: an error that names them, and nothing is lost."""

from __future__ import annotations

import json
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import infoprune
from infoprune import PruningPlan
from infoprune.callbacks import RunReport
from infoprune.errors import CheckpointError, ConfigurationError, PlanError
from tests.bad_input import L1_AT_1, NothingToPrune, Project, Snapshot, X, command, files, refused, told
from tests.bad_input import surroundings as surroundings
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer

pytestmark = pytest.mark.usefixtures("surroundings")


# -- files that cannot be read ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a pruned model leaves: ``net.pt`` of `infoprune.save`, ``plan.json``, ``fit.ckpt`` of a fit."""
    folder = tmp_path_factory.mktemp("saved")
    module = TinyModule()
    run = trainer(pruning((1,)), epochs=2)
    run.fit(module, loader())
    run.save_checkpoint(folder / "fit.ckpt")
    infoprune.save(module.net, folder / "net.pt")
    infoprune.plan_of(module.net).save(folder / "plan.json")
    return files(folder)


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"hello, this is no checkpoint",
        "first byte": whole[:1],
        "first half": whole[: len(whole) // 2],
        "all but one byte": whole[:-1],
    }


@pytest.mark.parametrize("how", damaged(b""))
def test_load_of_a_damaged_file(how: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "net.pt", TinyNet()
    path.write_bytes(damaged(saved["net.pt"])[how])
    with refused(CheckpointError, r"cannot read .*net\.pt, it is truncated or not a checkpoint", net):
        infoprune.load(path, net)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_load_of_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    net = TinyNet()
    with refused(CheckpointError, f"cannot read .*{name}: there is no such file", net):
        infoprune.load(tmp_path / name, net)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with refused(CheckpointError, r"cannot write .*net\.pt: there is no folder .*absent", folder=tmp_path):
        infoprune.save(TinyNet(), tmp_path / "absent" / "net.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infoprune": 9}, r"was not written by infoprune\.save \(format 1\)"),
        ({"plan": None}, "is damaged: this is not a pruning plan"),
        ({"plan": {"format": 1, "tensors": {"stem.weight": {"shape": [8.5]}}}}, "is damaged: .*whole number, got 8.5"),
        ({"state_dict": None}, "is damaged: its 'state_dict' is a NoneType"),
        ({"state_dict": {"stem.weight": 3}}, "stem.weight is a int, not a tensor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_load_of_altered_contents(change: dict, message: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "net.pt", TinyNet()
    path.write_bytes(saved["net.pt"])
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with refused(CheckpointError, message, net, folder=tmp_path):
        infoprune.load(path, net)


def test_load_of_what_is_no_such_file(saved: dict[str, bytes], tmp_path: Path) -> None:
    net = TinyNet()
    torch.save(TinyNet().state_dict(), tmp_path / "weights.pt")
    torch.save(TinyNet(), tmp_path / "module.pt")
    for path, message in [
        (tmp_path / "absent.pt", "there is no such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "module.pt", "cannot read .*more than tensors"),
        (tmp_path / "weights.pt", r"was not written by infoprune\.save"),
        (TinyNet(), "expected str, bytes or os.PathLike object, not TinyNet"),
    ]:
        with refused(CheckpointError, message, net, folder=tmp_path):
            infoprune.load(path, net)  # type: ignore[arg-type]


def test_load_into_another_architecture_names_the_first_layer(saved: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(saved["net.pt"])
    wide_head = TinyNet()
    wide_head.head = nn.Linear(12, 7)
    for net, message in [
        (TinyNet(inner=10), r"conv1\.weight has shape \(10, 12, 3, 3\), the plan expects \(12, 12, 3, 3\)"),
        (wide_head, r"head\.weight has shape \(7, 12\), the plan expects \(3, 12\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "the plan cuts 'stem.weight', which this model does not have"),
    ]:
        with refused(CheckpointError, f"belongs to another architecture: .*{message}", net, folder=tmp_path):
            infoprune.load(path, net)
    pruned = infoprune.load(path, TinyNet())
    with refused(CheckpointError, "a model that is pruned already: give one as it was built", pruned):
        infoprune.load(path, pruned)


def with_plan(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        plan = json.loads(text)
        change(plan["tensors"]["conv1.weight"])
        return json.dumps(plan)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "truncated or not JSON"),
        (lambda text: text[: len(text) // 2], "truncated or not JSON"),
        (lambda text: text[:-3], "truncated or not JSON"),
        (lambda text: "null", "no 'tensors'"),
        (lambda text: "[]", "no 'tensors'"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 9, this version of infoprune reads 1"),
        (lambda text: '{"format": 1, "tensors": []}', "malformed"),
        (with_plan(lambda entry: entry.update(shape="12")), "malformed: .*whole number, got '1'"),
        (with_plan(lambda entry: entry.update(shape=[12.0, 12, 3, 3])), "malformed: .*whole number, got 12.0"),
        (with_plan(lambda entry: entry.update(removed={"0": 3})), "malformed"),
        (with_plan(lambda entry: entry.update(removed={"0": "a"})), "malformed"),
        (with_plan(lambda entry: entry.update(removed={"0": "3-1"})), "malformed: .*range '3-1' is empty"),
        (with_plan(lambda entry: entry.update(removed={"0": "3,0"})), "repeated or not in order"),
        (with_plan(lambda entry: entry.update(removed={"0": "0,99"})), "index 99 of dimension 0 of conv1.weight"),
        (with_plan(lambda entry: entry.update(removed={"0": "0-11"})), "removes all 12 of dimension 0 of conv1.weight"),
        (with_plan(lambda entry: entry.update(removed={"9": "0"})), r"dimension 9 of conv1.weight, which has shape"),
    ],
)
def test_plan_files(change: Callable[[str], str], message: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "plan.json", TinyNet()
    path.write_text(change(saved["plan.json"].decode()))
    with refused(PlanError, rf"plan\.json: .*{message}", net, folder=tmp_path):
        infoprune.shrink(net, PruningPlan.load(path))


def test_plans_that_are_no_plan_file(tmp_path: Path) -> None:
    net = TinyNet()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", ".", "binary.json"):
        with refused(PlanError, "cannot read the pruning plan", net, folder=tmp_path):
            infoprune.shrink(net, PruningPlan.load(tmp_path / name))
    with refused(PlanError, r"needs a PruningPlan, got a str; PruningPlan\.load reads", net):
        infoprune.shrink(net, "plan.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", damaged(b""))
def test_checkpoints_of_a_fit_that_are_damaged(
    how: str, saved: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python the file is read by Lightning, whose error it is; the command looks first."""
    path, module = tmp_path / "fit.ckpt", TinyModule()
    path.write_bytes(damaged(saved["fit.ckpt"])[how])
    before, written = Snapshot(module), files(tmp_path)
    with pytest.raises((OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError)):
        trainer(pruning((1,))).fit(module, loader(), ckpt_path=path)
    before.check()
    assert command("--trainer.logger=false", f"--ckpt_path={path}", **L1_AT_1) == 2
    assert re.search(r"fit\.ckpt (is no checkpoint, or was cut short|is damaged)", told(capsys))
    assert files(tmp_path) == written


def test_the_command_names_what_does_not_fit(
    saved: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt").write_bytes(saved["net.pt"])
    (tmp_path / "fit.ckpt").write_bytes(saved["fit.ckpt"])
    dense = trainer(epochs=1)
    dense.fit(TinyModule(), loader())
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    (tmp_path / "logs").mkdir()
    written = files(tmp_path)
    for path, message in [
        ("absent.ckpt", "absent.ckpt"),
        ("logs", "Is a directory: .*logs"),
        ("net.pt", "was not written by a Trainer"),
        ("fit.ckpt", "another architecture: the plan cuts 'net.stem.weight', which this model does not have"),
        ("dense.ckpt", r'another architecture: Missing key\(s\) in state_dict: "net.0.weight"'),
    ]:
        options = ["--trainer.logger=false", f"--ckpt_path={tmp_path / path}"]
        assert command(*options, project=NothingToPrune, **L1_AT_1) == 2
        assert re.search(message, told(capsys))
        (tmp_path / "pruning_run/config.yaml").unlink(missing_ok=True)  # what the command was told, written at setup
        assert files(tmp_path) == written


# -- files that cannot be written -------------------------------------------------------------------------------------

UNWRITABLE = ["file/model.pt", "folder", "absent/model.pt", "/proc/model.pt"]
"""Below a file, a folder itself, in no folder, in a file system that takes none: refused to root, too."""


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", UNWRITABLE)
def test_models_and_plans_that_cannot_be_written(path: str, places: Path) -> None:
    net = TinyNet()
    infoprune.prune(net, X, "l1", filters=0.5)
    with refused(CheckpointError, f"cannot write .*{path}", net, folder=places):
        infoprune.save(net, places / path)
    with refused(PlanError, f"cannot write the pruning plan .*{path}", net, folder=places):
        infoprune.plan_of(net).save(places / path)


def test_a_disk_that_runs_full_leaves_the_file_that_was_there(saved: dict[str, bytes], tmp_path: Path) -> None:
    """Not a byte of the old model or plan is lost before the new one is complete."""
    net = TinyNet()
    infoprune.prune(net, X, "l1", filters=0.75)
    for name in ("net.pt", "plan.json"):
        (tmp_path / name).write_bytes(saved[name])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with refused(CheckpointError, r"cannot write .*net\.pt", net, folder=tmp_path):
            infoprune.save(net, tmp_path / "net.pt")
        with refused(PlanError, r"cannot write .*plan\.json.*File too large", net, folder=tmp_path):
            infoprune.plan_of(net).save(tmp_path / "plan.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("folder", ["file/here", "/proc/here"])
def test_a_run_folder_that_cannot_be_written(folder: str, places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before training, with the option that chooses another."""
    module = Project()
    message = f"run folder .*{folder}.* cannot be written .*save_dir, or trainer.default_root_dir"
    with refused(ConfigurationError, message, module, folder=places):
        trainer(RunReport(folder=str(places / folder)), pruning((1,))).fit(module)
    for options in (
        ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={places / folder}"],
        ["--trainer.logger=false", f"--trainer.default_root_dir={places / folder}"],
    ):
        written = files(places)
        assert command(*options, **L1_AT_1) == 2
        assert re.search(message, told(capsys))
        assert files(places) == written
        Project.made[-1].before.check()
