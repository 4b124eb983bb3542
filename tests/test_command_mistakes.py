"""Typical mistakes on the command line: one line that names the option and what to do, and no file left."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from torch.utils.data import BatchSampler, DataLoader

from infoprune.commands.parser_errors import in_one_line
from infoprune.commands.training import has_gpu
from tests.commands import NET, Shell, weights
from tests.tiers import thinned

ROOT = Path(__file__).resolve().parents[1]
CUT = ["--input_shape", "1,3,16,16", "--macs", "0.5", "--out", "out"]
FIT = ["--model", "tests.user_project.UserModule", "--data", "tests.user_project.UserData"]
FIT += ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
FILES = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
PRUNING = ["--trainer.callbacks+=FilterPruning", "--trainer.callbacks.macs=0.5"]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    # Lightning wraps these methods while it asks for the data, and leaves them wrapped where that fails.
    for cls in (DataLoader, BatchSampler):
        for method in ("__init__", "__setattr__", "__delattr__"):
            monkeypatch.setattr(cls, method, getattr(cls, method))
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "misspelt.yaml").write_text("model: tests.user_project.UserModule\ntrainer:\n  max_epoch: 3\n")
    weights(tmp_path / "deeper.pt", depth=14)
    return Shell(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    thinned(
        [
            (["prune", "--out", "out"], "missing: --model"),
            (["prune", "--model", "resnet81", *CUT], "did you mean 'resnet"),
            (["prune", "--model", "CifarResnet", *CUT], "did you mean 'CifarResNet'"),
            (["prune", "--model", "torchvision.models.resnet81", *CUT], "did you mean 'resnet"),
            (
                ["prune", "--model", "not_there.Net", *CUT],
                "not_there.Net cannot be imported: No module named 'not_there'",
            ),
            (["prune", "--model", "notes.txt", *CUT], "neither the folder of a run nor a checkpoint"),
            (["prune", "--model", "CifarResNet", "--model.depth", "eight", *CUT], "'depth': expected int, got 'eight'"),
            (["prune", *NET, "--weights", "none.pt", *CUT], "--weights none.pt: there is no such file"),
            (["prune", *NET, "--weights", "deeper.pt", *CUT], "does not fit CifarResNet"),
            (["prune", *NET, *CUT, "--mac", "0.5"], "unrecognized arguments: --mac 0.5, did you mean '--macs'"),
            (["prune", *NET, *CUT, "0.5"], "every value follows its option"),
            (["prune", *NET, *CUT, "--data", "DigitsDataModule"], r"forward failed on a batch of shape"),
            (["prune", *NET, *CUT, "--data.root", "images"], "--data.root: name the class first"),
            (["prune", *NET, *CUT[:-1], "notes.txt/deep"], "--out notes.txt/deep: notes.txt is a file"),
            (["export", *NET, *CUT[:2], "--out", "notes.txt"], "--out notes.txt: notes.txt is a file"),
            (["report", "nowhere"], "name the folder of a run that has ended"),
            (["plot", "--run", "nowhere"], "name the folder of a run that has ended"),
            (["plot", "nowhere"], "every value follows its option"),
            (["compare", *NET, *CUT[:2], "--data", "DigitsDataModule"], "forward failed on a batch of shape"),
            (["-x"], "there is no command '-x'"),
            (["fit", "--model", "resnet81"], "did you mean 'resnet"),
            (["fit", "--model", "not_there.Net"], "--model: not_there.Net cannot be imported"),
            (["fit", "--model.class_path", "not_there.Net"], "--model: not_there.Net cannot be imported"),
            (["fit", "--model", "os.getcwd"], "--model: os.getcwd is no class that derives from LightningModule"),
            (["fit", "--model.width", "8"], "--model.width: name the class first, as in --model MyClass --model.width"),
            (["fit", *FIT[:2], "--data", "tests.user_project.Data"], "did you mean 'UserData'"),
            (["fit", *FIT[:2], "--model.width", "wide"], "UserModule option 'width': expected int, got 'wide'"),
            (["fit", "--confg", "my.yaml"], "did you mean '--config'"),
            (["fit", "--config", "notes.txt"], "--config: not a file of options"),
            (
                ["fit", "--config", "misspelt.yaml"],
                "--config: fit has no option 'trainer.max_epoch', did you mean 'trainer.max",
            ),
            (["fit", *FIT, "--trainer.precision", "13"], "--trainer.precision: '13' is none of 64, 32, 16"),
            (["fit", *FIT, "--trainer.strategy", "ddpp"], "invalid strategy name"),
            (
                ["fit", *FIT, *PRUNING, "--trainer.callbacks.schedule=one"],
                "'schedule': expected int or list or dict, got",
            ),
            (
                ["fit", "--trainer.callbacks.help=FilterPrunin"],
                "error: no class is called 'FilterPrunin', did you mean",
            ),
            (["fit", *FIT, "--trainer.max_epoch", "3"], "did you mean '--trainer.max_epochs'"),
            (["fit", *FIT[:2], *FIT[4:], *FILES], "`train_dataloader` must be implemented"),
            (["fit", *FIT, *FILES, *PRUNING, "--trainer.callbacks.schedule=9"], "max_epochs is 2"),
            (
                ["fit", *FIT, *FILES, *PRUNING, "--trainer.callbacks.schedule=1", "--trainer.callbacks.frozen=[x]"],
                "'x'",
            ),
            (["test", *FIT, "--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt: there is no such file"),
            (["test", *FIT, "--ckpt_path", "deeper.pt"], "was not written by a Trainer"),
        ]
    ),
)
def test_a_mistake_is_one_line_and_leaves_no_file(words: list[str], message: str, shell: Shell, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ran = shell(*words)
    assert ran.code == 2
    said = [line for line in ran.err if line.startswith("infoprune: error: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "NestedArg" not in said[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(shell: Shell) -> None:
    assert shell.refuses("fit", *FIT, "--trainer.accelerator=gpu").endswith("sees no GPU here; give cpu or auto")


def test_a_package_that_a_class_lacks_is_named(shell: Shell, tmp_path: Path) -> None:
    lines = [
        "import lightning as L",
        "class Needy(L.Callback):",
        "    def __init__(self):",
        "        import absent_package",
    ]
    (tmp_path / "needy_project.py").write_text("\n".join(lines))
    ran = shell("fit", *FIT, "--trainer.callbacks+=needy_project.Needy")
    assert ran.code == 2
    assert ran.err[-1].endswith("a class that is asked for lacks a package: No module named 'absent_package'")


def test_a_test_without_a_checkpoint_says_which_weights_it_uses(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    lightning = logging.getLogger("lightning.pytorch")  # whose entries do not reach the root logger
    lightning.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", "lightning.pytorch"):
            assert shell("test", *FIT, "--trainer.logger=false").code == 0
    finally:
        lightning.removeHandler(caplog.handler)
    assert "no --ckpt_path: the model has the weights that it was built with" in caplog.text


def test_a_refused_fit_leaves_what_was_there(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "logs/lightning_logs/version_0").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert shell("fit", *FIT, *FILES, *PRUNING, "--trainer.callbacks.schedule=9").code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_of_the_parser_that_nobody_foresaw_is_one_line() -> None:
    assert in_one_line("error: something\n  new  about --macs") == "something new about --macs"
