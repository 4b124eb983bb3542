"""What a whole run leaves in W&B and MLflow: from the command, under DDP, in a sweep; and the team's dashboard."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from torch.torch_version import TorchVersion
from wandb.errors import CommError

from infoprune.commands.offline import reach_wandb
from infoprune.errors import InfopruneError
from infoprune.report import RunRecord
from infoprune.report.loggers import RunLog
from infoprune.report.scalars import event_scalars, summary_values
from tests.commands import Shell
from tests.sample_record import sample_record
from tests.wandb_file import OfflineRun, read_offline_run

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--trainer.max_epochs=3", "--trainer.callbacks.schedule=[1,2]", "--trainer.enable_progress_bar=false"]
WANDB = ["--trainer.logger=WandbLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.project=pruning"]


def fit(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the quickstart in a process of its own, offline unless the variables say otherwise.

    Without the address of this process's W&B service: that one would take ``logs`` as a folder of this process.
    """
    command = [sys.executable, "-m", "infoprune", "fit", "--config", str(ROOT / "configs/quickstart.yaml")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment.pop("WANDB_SERVICE", None)
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment |= variables
    done = subprocess.run([*command, *SHORT, *options], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def the_record(folder: Path) -> RunRecord:
    (path,) = folder.rglob("record.json")
    return RunRecord.load(path)


def check_events(run: OfflineRun, record: RunRecord) -> None:
    """Every event once, with its numbers, its metrics, its tables."""
    assert [row["prune/event"] for row in run.history if "prune/macs" in row] == [1, 2]
    assert run.column("prune/macs") == [event.macs for event in record.events]
    assert run.column("prune/macs_ratio") == pytest.approx([e.macs / record.before.macs for e in record.events])
    assert len(run.column("prune/heat_map")) == len(run.column("prune/units")) == 2
    assert len(run.column("prune/events")) == 1
    assert len(run.column("val/acc")) == 3
    for name, value in summary_values(record).items():
        assert run.summary[name] == pytest.approx(value), name


OLD_WANDB = TorchVersion(wandb.__version__) < "0.28"
HANGS = pytest.mark.skipif(OLD_WANDB, reason="wandb before 0.28 starts no run after one that the network failed")


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["no login", pytest.param("no network", marks=HANGS)])
def test_a_run_that_wandb_does_not_take_is_kept_and_found(reason: str, tmp_path: Path) -> None:
    address = "http://127.0.0.1:9"  # nobody listens there
    key = {"WANDB_API_KEY": "0" * 40} if reason == "no network" else {"WANDB_API_KEY": ""}
    nobody = {"HOME": str(tmp_path / "home"), "WANDB_INIT_TIMEOUT": "1", "WANDB_BASE_URL": address, **key}
    done = fit(tmp_path, *WANDB, WANDB_MODE="online", **nobody)
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    printed = " ".join((done.stdout + done.stderr).split())
    assert printed.count("W&B does not take this run (") == 1
    assert f"it is kept offline in {folder.relative_to(tmp_path)}" in printed
    assert f"wandb sync {folder.relative_to(tmp_path)}" in done.stdout
    check_events(read_offline_run(folder), the_record(tmp_path))


def test_a_client_that_cannot_go_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wandb before 0.28 behaves: after a run that the network failed, the offline one times out too."""

    def timed_out(**options: Any) -> Any:
        raise CommError("Run initialization has timed out after 1.0 sec. Please try")

    monkeypatch.setattr(wandb, "init", timed_out)
    trainer = L.Trainer(logger=WandbLogger(save_dir=tmp_path), enable_checkpointing=False, accelerator="cpu")
    message = r"\(Run initialization has timed out .*\), and wandb .* cannot keep it offline .*: set WANDB_MODE=offline"
    with pytest.raises(InfopruneError, match=message):
        reach_wandb(trainer)


@pytest.mark.slow
def test_two_processes_log_one_run(tmp_path: Path) -> None:
    fit(tmp_path, *WANDB, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")
    record = the_record(tmp_path)
    assert len(record.events) == 2
    check_events(read_offline_run(tmp_path), record)


class TestSweep:
    sweep: dict[str, Any] = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())

    def test_every_trial_is_a_command_that_is_understood(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from infoprune.commands.training import parsers
        from infoprune.criteria import get_criterion
        from infoprune.decide import Target

        assert self.sweep["method"] == "grid"
        assert WandbLogger.__name__ in self.sweep["command"]
        names, values = zip(*((n, p["values"]) for n, p in self.sweep["parameters"].items()), strict=True)
        trials = [dict(zip(names, choice, strict=True)) for choice in itertools.product(*values)]
        assert len(trials) == 21
        monkeypatch.chdir(ROOT)
        parser = parsers()["fit"]
        balances = set()
        for trial in trials[:: len(self.sweep["parameters"]["trainer.callbacks.macs"]["values"])]:
            options = parser.parse_args(self.arguments(trial, self.sweep["command"][2:]))
            chosen = options.trainer.callbacks[-1].init_args
            criterion = get_criterion(chosen.criterion)
            balances.add(getattr(criterion, "balance", None))
            assert Target(macs=chosen.macs).budget is not None
        assert balances == {None, 0.0, 0.25, 0.5, 0.75, 1.0}

    @staticmethod
    def arguments(trial: dict[str, Any], command: list[str]) -> list[str]:
        """What the agent puts in the place of ``${args}``."""
        given = [f"--{name}={value}" for name, value in trial.items()]
        return [word for part in command for word in (given if part == "${args}" else [part])]

    @pytest.mark.slow
    def test_one_trial_without_an_agent(self, tmp_path: Path) -> None:
        trial = {"trainer.callbacks.criterion": "{name: capacity_independence, balance: 0.25}",
                 "trainer.callbacks.macs": 0.7}  # fmt: skip
        assert all(value in self.sweep["parameters"][name]["values"] for name, value in trial.items())
        fit(tmp_path, *WANDB, *self.arguments(trial, ["${args}"]))
        run, record = read_offline_run(tmp_path), the_record(tmp_path)
        check_events(run, record)
        assert run.config["pruning"]["criterion"] == "capacity_independence"
        assert run.config["pruning"]["macs"] == 0.7
        assert self.sweep["metric"]["name"] in run.summary


def test_mlflow_gets_the_same_scalars_and_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks whether a folder is meant
    uri = (tmp_path / "mlruns").as_uri()
    logger = MLFlowLogger("pruning", tracking_uri=uri)
    record, log = sample_record(), RunLog([logger])
    log.start(record.options)
    for event in record.events:
        log.event(event)
    log.finish(record, tmp_path, step=999)
    client = MlflowClient(uri)
    assert logger.run_id is not None
    for name, value in event_scalars(record.events[1]).items():
        last = client.get_metric_history(logger.run_id, name)[-1]
        assert (last.value, last.step) == (pytest.approx(value), 360)
    run = client.get_run(logger.run_id)
    assert run.data.metrics["prune/speedup"] == pytest.approx(summary_values(record)["prune/speedup"])
    assert run.data.params["pruning/criterion"] == "capacity_independence"


class TestDashboard:
    @pytest.fixture
    def shell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
        monkeypatch.chdir(tmp_path)
        return Shell(capsys)

    def test_every_panel_shows_what_runs_log(self, shell: Shell, tmp_path: Path) -> None:
        pytest.importorskip("wandb_workspaces", reason="needs the dashboard extra")
        words = ["dashboard", "--entity", "team", "--project", "pruning", "--metric", "val/top1", "--json"]
        definition = shell(*words).json["definition"]
        assert (definition["entity"], definition["project"]) == ("team", "pruning")
        sections = definition["spec"]["section"]["panelBankConfig"]["sections"]
        assert [section["name"] for section in sections if section["panels"]] == [
            "Runs compared", "Along the run", "Layers", "Scores"
        ]  # fmt: skip
        text = json.dumps(definition)
        shown = {name for name in self.logged() if f'"{name}"' in text or f'{name}"' in text}
        asked = {word for word in text.replace("\\", "").split('"') if word.startswith("prune/")}
        assert asked <= self.logged(), asked - self.logged()
        assert {"prune/macs_kept", "prune/speedup", "prune/heat_map", "prune/events", "prune/units"} <= shown

    @staticmethod
    def logged() -> set[str]:
        """Everything under ``prune/`` that a run sends to W&B."""
        record = sample_record()
        panels = ("layers", "units", "widths_table", "heat_map", "events", "scores/kept", "scores/removed")
        names = {f"prune/{name}" for name in (*panels, "macs_ratio", "params_ratio")}
        return names | set(summary_values(record)) | set(event_scalars(record.events[0]))

    def test_without_a_login_it_says_so(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb_workspaces", reason="needs the dashboard extra")
        for name in ("WANDB_API_KEY", "NETRC"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(Path.cwd()))
        line = shell("dashboard", "--entity", "team", "--project", "pruning").err[-1]
        assert "wandb login" in line
        assert "--json prints the definition" in line


@pytest.mark.slow
def test_the_sweep_with_optuna_runs_offline(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    words = [sys.executable, str(ROOT / "examples/sweep.py"), "--trials", "2", "--epochs", "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+% of the MACs, accuracy \d+\.\d%: \{'criterion'", done.stdout, re.MULTILINE)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
