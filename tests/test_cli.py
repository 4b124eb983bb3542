"""The command with a user's own classes: fit, resume, test; what it prints, leaves behind, and says about mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import infoprune
from infoprune.cli import main
from infoprune.commands.training import TrainingCLI, parsers
from infoprune.report import RunRecord
from tests import warm
from tests.tiny import same
from tests.user_project import UserModule

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
MODULE = ["--model=tests.user_project.UserModule"]
DATA = ["--data=tests.user_project.UserData"]
PRUNING = ["--trainer.callbacks+=FilterPruning", "--trainer.callbacks.criterion=l1", "--trainer.callbacks.filters=0.5"]
UNTIMED = ["--trainer.callbacks+=RunReport", "--trainer.callbacks.latency_repeats=0", *PRUNING]
"""A report without the speed of the two models, which takes seconds to measure."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder, as if the shell had given no arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    return tmp_path


def fit(*options: str, epochs: int = 3) -> int:
    return main(["fit", *MODULE, *DATA, *QUIET, f"--trainer.max_epochs={epochs}", *options])


def logger(name: str = "run") -> list[str]:
    return ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", f"--trainer.logger.name={name}"]


class TestFit:
    def test_prunes_a_users_module_and_leaves_a_run_folder(self, folder: Path, capsys) -> None:
        assert fit(*logger(), *PRUNING, "--trainer.callbacks.schedule=[1,2]") == 0
        run = folder / "logs/run/version_0"
        names = {path.name for path in run.iterdir()}
        assert names >= {"report.html", "record.json", "plan.json", "pruned.pt", "config.yaml", "metrics.csv"}
        assert list(run.glob("checkpoints/*.ckpt"))

        record = RunRecord.load(run / "record.json")
        assert [event.epoch for event in record.events] == [1, 2]
        assert [(row.name, row.channels_before, row.channels_after) for row in record.layers] == [
            ("features.0", 8, 4), ("features.3", 16, 8), ("head", 4, 4)
        ]  # fmt: skip
        assert record.before.latency_s
        assert record.after.latency_s
        assert {"val_acc", "test_acc"} <= set(record.before.metrics) & set(record.after.metrics)
        assert record.metric == "test_acc"
        assert record.seed == 42
        assert record.command.startswith("infoprune fit --model=tests.user_project.UserModule")
        assert yaml.safe_load(record.config) == yaml.safe_load((run / "config.yaml").read_text())

        printed = capsys.readouterr().out
        assert "features.0" in printed
        assert "8 → 4" in printed
        assert "test_acc" in printed
        assert "report.html" in printed

    def test_printed_accuracies_are_those_of_the_two_models(self, folder: Path) -> None:
        """A net that is cut after it has learnt and then not trained any further: both figures are checked by hand."""
        options = [*logger(), *UNTIMED, "--trainer.callbacks.schedule=1", "--trainer.limit_val_batches=0"]
        assert fit(*options, "--model.lr=0.05", epochs=1 + 1) == 0
        record = RunRecord.load(folder / "logs/run/version_0/record.json")

        import torch

        import infoprune
        from tests.user_project import UserModule, blobs

        images, labels = blobs(64).tensors
        pruned = infoprune.load(folder / "logs/run/version_0/pruned.pt", UserModule()).eval()
        with torch.no_grad():
            accuracy = float((pruned(images).argmax(1) == labels).float().mean())
        assert record.after.metrics["test_acc"] == pytest.approx(accuracy)
        assert set(record.before.metrics) == {"test_acc", "test_loss"}
        assert record.before.metrics["test_loss"] != record.after.metrics["test_loss"]

    def test_without_pruning_it_is_plain_lightning(self, folder: Path, capsys) -> None:
        assert fit(*logger(), epochs=1) == 0
        assert not list(folder.rglob("report.html"))
        assert "channels" not in capsys.readouterr().out

    def test_needs_no_datamodule(self) -> None:
        module = ["--model=tests.user_project.SelfContained"]
        options = ["--trainer.max_epochs=2", "--trainer.limit_val_batches=0", "--trainer.callbacks.schedule=1"]
        pruning = [*UNTIMED, options.pop()]
        assert main(["fit", *module, *QUIET, *options, *logger(), *pruning]) == 0
        record = RunRecord.load("logs/run/version_0/record.json")
        assert record.before.metrics == {}
        assert record.metric is None

    def test_never_writes_over_a_config_in_the_current_folder(self, folder: Path) -> None:
        (folder / "config.yaml").write_text("trainer:\n  max_epochs: 1\n")
        for _ in range(2):
            assert fit("--config=config.yaml", "--trainer.logger=false", epochs=1) == 0
        assert (folder / "config.yaml").read_text() == "trainer:\n  max_epochs: 1\n"
        assert (folder / "pruning_run/config.yaml").is_file()

    def test_a_report_that_the_config_asks_for_is_the_only_one(self, folder: Path) -> None:
        assert fit(*logger(), *UNTIMED, "--trainer.callbacks.schedule=1") == 0
        record = RunRecord.load("logs/run/version_0/record.json")
        assert record.before.latency_s is None
        assert len(list(folder.rglob("report.html"))) == 1

    def test_printed_config_gives_the_same_run(self, folder: Path, capsys) -> None:
        options = [*logger("first"), *UNTIMED, "--trainer.callbacks.schedule=[1,2]"]
        with pytest.raises(SystemExit, match="0"):
            fit(*options, "--print_config")
        (folder / "printed.yaml").write_text(capsys.readouterr().out)
        assert fit(*options) == 0
        assert main(["fit", "--config=printed.yaml", "--trainer.logger.name=second"]) == 0
        plans = [json.loads((folder / f"logs/{name}/version_0/plan.json").read_text()) for name in ("first", "second")]
        assert plans[0] == plans[1]


class TestAfterwards:
    @pytest.fixture
    def run(self, finished: Path, folder: Path) -> Path:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        return folder / "logs/run/version_0"

    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder in which a run has been made."""
        folder = tmp_path_factory.mktemp("finished")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.syspath_prepend(ROOT)
            patch.setattr(sys, "argv", ["infoprune"])
            assert fit(*logger(), *UNTIMED, "--trainer.callbacks.schedule=[1,2]") == 0
        return folder

    def test_checkpoints_test_validate_and_predict_with_the_runs_own_config(self, run: Path) -> None:
        (checkpoint,) = run.glob("checkpoints/*.ckpt")
        for command in ("test", "validate", "predict"):
            assert main([command, f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"]) == 0

    def test_a_run_resumes_and_its_report_tells_the_whole_story(self, run: Path, folder: Path) -> None:
        (checkpoint,) = run.glob("checkpoints/*.ckpt")
        config = [f"--config={run / 'config.yaml'}", "--trainer.logger.name=more", "--trainer.max_epochs=5"]
        assert main(["fit", *config, f"--ckpt_path={checkpoint}"]) == 0
        record = RunRecord.load(folder / "logs/more/version_0/record.json")
        assert [event.epoch for event in record.events] == [1, 2]
        assert [entry["epoch"] for entry in record.history] == [0, 1, 2, 3, 4]
        assert record.before.latency_s is None
        assert record.layers[0].channels_before == 8
        assert record.coupling["features.0"].startswith("features.0: 8 units can be pruned")

    @pytest.mark.parametrize("epoch", [1, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (0, 2))])
    def test_a_run_that_resumes_ends_with_the_same_bits(self, epoch: int, kept: Path, folder: Path) -> None:
        config = [f"--config={kept / 'logs/whole/version_0/config.yaml'}", "--trainer.logger.name=resumed"]
        assert main(["fit", *config, f"--ckpt_path={kept / f'kept/epoch={epoch}.ckpt'}"]) == 0
        whole, resumed = (
            infoprune.load(run / "version_0/pruned.pt", UserModule())
            for run in (kept / "logs/whole", folder / "logs/resumed")
        )
        assert len(RunRecord.load("logs/resumed/version_0/record.json").events) == 2
        assert same(whole, resumed)

    @pytest.fixture(scope="class")
    def kept(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder in which a run has been made that kept a checkpoint of every epoch."""
        folder = tmp_path_factory.mktemp("kept")
        options = ["+=ModelCheckpoint", ".dirpath=kept", ".filename={epoch}", ".save_top_k=-1"]
        keep = [f"--trainer.callbacks{option}" for option in options]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.syspath_prepend(ROOT)
            patch.setattr(sys, "argv", ["infoprune"])
            assert fit(*logger("whole"), *UNTIMED, "--trainer.callbacks.schedule=[1,2]", *keep, epochs=4) == 0
        return folder

    def test_the_command_line_beats_the_checkpoints_hyperparameters(self, run: Path) -> None:
        """The checkpoint says width 8; a run of width 16 must not silently become one of width 8."""
        (checkpoint,) = run.glob("checkpoints/*.ckpt")
        options = [f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}", "--model.width=16"]
        assert main(["test", *options]) == 2


class TestMistakes:
    def test_the_traceback_is_there_for_who_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INFOPRUNE_DEBUG", "1")
        with pytest.raises(ValueError, match="did you mean 'l1'"):
            fit(*PRUNING, "--trainer.callbacks.schedule=1", "--trainer.callbacks.criterion=l11")

    def test_an_unknown_option_is_named_by_the_parser(self, capsys) -> None:
        assert fit("--trainer.max_epohcs=3") == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert "max_epohcs" in said[0]

    def test_a_report_behind_the_pruning_is_refused(self, capsys) -> None:
        options = [*PRUNING, "--trainer.callbacks.schedule=1", "--trainer.callbacks+=RunReport"]
        assert fit(*options) == 2
        assert "put it before" in capsys.readouterr().err


class TestTheCommandItself:
    def test_help_teaches(self, capsys) -> None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        for word in ("fit", "validate", "test", "predict", "class_path", "FilterPruning", "INFOPRUNE_DEBUG"):
            assert word in text

    def test_without_a_command_it_helps_and_fails(self, capsys) -> None:
        assert main([]) == 2
        assert "usage" in capsys.readouterr().out

    def test_an_unknown_command_names_the_nearest(self, capsys) -> None:
        assert main(["ft"]) == 2
        assert "did you mean 'fit'" in capsys.readouterr().err

    def test_only_the_parser_of_the_command_that_is_asked_for_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each takes a tenth of a second, for which every start of a training would wait."""
        made, make = [], TrainingCLI._prepare_subcommand_parser

        def noting(cli: TrainingCLI, kind: type, name: str, **options: object) -> object:
            made.append(name)
            return make(cli, kind, name, **options)

        monkeypatch.setattr(TrainingCLI, "_prepare_subcommand_parser", noting)
        assert fit("--trainer.max_epohcs=3") == 2
        assert made == ["fit"]
        assert set(parsers()) == {"fit", "validate", "test", "predict"}

    def test_help_of_a_callback_by_its_short_name(self, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--trainer.callbacks.help=FilterPruning"])
        assert "--trainer.callbacks.criterion" in capsys.readouterr().out.replace("\n", "")


def quickstart(*options: str) -> RunRecord:
    """Run the quickstart in a process of its own, as a user does."""
    command = ["-m", "infoprune", "fit", "--config", str(ROOT / "configs/quickstart.yaml"), *options]
    done = warm.python(*command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "In total" in done.stdout
    return RunRecord.load("runs/quickstart/version_0/record.json")


def test_the_quickstart_in_short() -> None:
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2"]
    record = quickstart(*short, "--trainer.callbacks.schedule=[0,1]")
    assert len(record.events) == 2
    assert 0.49 < record.after.macs / record.before.macs <= 0.5


@pytest.mark.slow
def test_the_quickstart_keeps_its_promises() -> None:
    record = quickstart()
    before, after = record.before.metrics["test/acc"], record.after.metrics["test/acc"]
    assert before is not None
    assert after is not None
    assert before >= 0.97
    assert after >= before - 0.01
    assert 0.49 < record.after.macs / record.before.macs <= 0.5


LEAVING = """
import atexit, sys
import torch
import torch.distributed as dist
from infoprune.commands.training import leave_process_group

rank, meet = int(sys.argv[1]), sys.argv[2]
atexit.register(leave_process_group)
dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
sent = [torch.nn.Parameter(torch.ones(3), requires_grad=False) for _ in range(5000)]
under_way = [dist.all_reduce(one, async_op=True) for one in sent]
under_way[20].wait()
del sent, under_way  # gloo's threads hold the rest, and free their Python objects
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_processes_that_went_well_end_well(folder: Path) -> None:
    """Without `leave_process_group`, one of these two processes or both abort more often than not."""
    script = folder / "leaving.py"
    script.write_text(LEAVING, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    both = [subprocess.Popen([*command, str(rank), str(folder / "meet")], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
