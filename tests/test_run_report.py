"""RunReport in a Trainer: it measures what the two models do, whatever the module and the loggers are like."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn

import infoprune
from infoprune import FilterPruning
from infoprune.callbacks import RunReport
from infoprune.callbacks.measure import UnprunedSnapshot
from infoprune.errors import ConfigurationError
from infoprune.report import RunRecord
from tests.user_project import UserData, UserModule, blobs
from tests.wandb_file import read_offline_run

ROOT = Path(__file__).resolve().parents[1]


class Snapshot(L.Callback):
    """Keeps a state dict of the module as it is when an epoch starts, before any pruning."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.state = epoch, {}

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            self.state = copy.deepcopy(pl_module.state_dict())


def trainer_of(folder: Path, *callbacks: L.Callback, logger: Logger | bool = False, **options) -> L.Trainer:
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    return L.Trainer(
        callbacks=list(callbacks), logger=logger, default_root_dir=folder, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def loss_and_accuracy(module: nn.Module) -> tuple[float, float]:
    images, labels = blobs(64).tensors
    with torch.no_grad():
        logits = module.eval()(images)
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def pruning(**options) -> FilterPruning:
    return FilterPruning("l1", filters=0.5, **{"schedule": 1, **options})


class TestFinish:
    def test_both_models_are_measured_as_they_are(self, tmp_path: Path) -> None:
        module, report, snapshot = UserModule(), RunReport(latency_repeats=2), Snapshot(1)
        trainer = trainer_of(tmp_path, snapshot, report, pruning())
        trainer.fit(module, UserData())
        record = report.finish(trainer, module, UserData())

        unpruned = UserModule()
        unpruned.load_state_dict(snapshot.state)
        for totals, model in ((record.before, unpruned), (record.after, module)):
            loss, accuracy = loss_and_accuracy(model)
            assert totals.metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
            assert totals.metrics["test_acc"] == pytest.approx(accuracy)
            assert totals.params == sum(parameter.numel() for parameter in model.parameters())
            assert totals.latency_s is not None
            assert totals.latency_s > 0
        assert record.before.metrics["test_loss"] != record.after.metrics["test_loss"]

    def test_the_module_stays_pruned_and_trainable(self, tmp_path: Path) -> None:
        module, report = UserModule(), RunReport(latency_repeats=2)
        trainer = trainer_of(tmp_path, report, pruning())
        trainer.fit(module, UserData())
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        report.finish(trainer, module, UserData())
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
        assert module.features[0].out_channels == 4
        trainer_of(tmp_path).fit(module, UserData())

    def test_only_the_pruned_model_is_logged(self, tmp_path: Path) -> None:
        module, report = UserModule(), RunReport(latency_repeats=2)
        logger = CSVLogger(tmp_path, name="run")
        trainer = trainer_of(tmp_path, report, pruning(), logger=logger)
        trainer.fit(module, UserData())
        record = report.finish(trainer, module, UserData())
        lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("test_loss")
        logged = [line.split(",")[column] for line in lines[1:] if line.split(",")[column]]
        assert [float(value) for value in logged] == [pytest.approx(record.after.metrics["test_loss"])]

    def test_pruned_file_loads_into_the_unpruned_architecture(self, tmp_path: Path) -> None:
        module, report = UserModule(), RunReport(latency_repeats=2)
        trainer = trainer_of(tmp_path, report, pruning())
        trainer.fit(module, UserData())
        assert report.folder == tmp_path / "pruning_run"
        again = infoprune.load(report.folder / "pruned.pt", UserModule())
        assert loss_and_accuracy(again) == loss_and_accuracy(module)
        assert infoprune.PruningPlan.load(report.folder / "plan.json").shape_after("features.0.weight")[0] == 4


class TestFollowing:
    def test_the_end_of_a_fit_writes_the_report_without_tests(self, tmp_path: Path) -> None:
        report = RunReport(folder=str(tmp_path / "here"))
        trainer_of(tmp_path, report, pruning(schedule=[1, 2]), max_epochs=4).fit(UserModule(), UserData())
        record = RunRecord.load(tmp_path / "here/record.json")
        assert [entry["epoch"] for entry in record.history] == [0, 1, 2, 3]
        assert all(set(entry) == {"epoch", "val_loss", "val_acc"} for entry in record.history)
        first, second = record.events
        assert first.metrics_before["val_loss"] == record.history[0]["val_loss"]
        assert first.metrics_after["val_loss"] == second.metrics_before["val_loss"] == record.history[1]["val_loss"]
        assert second.metrics_after["val_loss"] == record.after.metrics["val_loss"] == record.history[3]["val_loss"]
        assert record.before.metrics["val_loss"] == record.history[0]["val_loss"]
        assert record.metric == "val_acc"
        assert set(record.coupling) == {"features.0", "features.3"}
        assert set(record.frozen) == {"head"}

    def test_a_network_inside_a_module_that_cannot_be_copied(self, tmp_path: Path) -> None:
        class Generators(UserModule):
            def __init__(self) -> None:
                super().__init__()
                self.lazy = (i for i in range(3))  # cannot be copied

        report, module = RunReport(latency_repeats=2), Generators()
        trainer = trainer_of(tmp_path, report, pruning())
        trainer.fit(module, UserData())
        record = report.finish(trainer, module, UserData())
        assert record.before.metrics["test_loss"] is not None
        assert record.warnings == [] or "MACs" in record.warnings[0]

    def test_a_network_that_cannot_be_copied_is_pruned_all_the_same(self, tmp_path: Path) -> None:
        module, report = UserModule(), RunReport(latency_repeats=2)
        module.features.lazy = (i for i in range(3))
        trainer = trainer_of(tmp_path, report, pruning())
        trainer.fit(module, UserData())
        record = report.finish(trainer, module, UserData())
        assert module.features[0].out_channels == 4
        assert "could not be copied" in record.warnings[0]
        assert record.before.latency_s is None
        assert "test_loss" not in record.before.metrics

    def test_fast_dev_run_makes_the_whole_way(self, tmp_path: Path) -> None:
        report = RunReport(folder=str(tmp_path / "fast"))
        trainer_of(tmp_path, report, pruning(), fast_dev_run=True).fit(UserModule(), UserData())
        assert len(RunRecord.load(tmp_path / "fast/record.json").events) == 1

    def test_a_fit_that_never_prunes_says_so(self, tmp_path: Path) -> None:
        module, report = UserModule(), RunReport(latency_repeats=2)
        trainer = trainer_of(tmp_path, report, pruning(schedule=3), max_epochs=4, max_steps=4)
        trainer.fit(module, UserData())
        record = report.finish(trainer, module, UserData())
        assert record.events == []
        assert record.before.macs == record.after.macs
        assert "no pruning event took place" in (tmp_path / "pruning_run/report.html").read_text()


class TestRefusals:
    def test_without_pruning_there_is_nothing_to_report(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="no FilterPruning callback"):
            trainer_of(tmp_path, RunReport(latency_repeats=2)).fit(UserModule(), UserData())

    def test_behind_the_pruning_it_would_see_too_late(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="put it before"):
            trainer_of(tmp_path, pruning(), RunReport(latency_repeats=2)).fit(UserModule(), UserData())

    def test_a_negative_number_of_repeats(self) -> None:
        with pytest.raises(ConfigurationError, match="latency_repeats=-1"):
            RunReport(latency_repeats=-1)


class TestLoggers:
    def test_wandb_has_it_all_after_a_real_fit(self, tmp_path: Path) -> None:
        import wandb

        module, report = UserModule(), RunReport(latency_repeats=2)
        logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
        trainer = trainer_of(tmp_path, report, pruning(schedule=[1, 2]), max_epochs=3, logger=logger)
        trainer.fit(module, UserData())
        wandb.finish()
        run = read_offline_run(tmp_path / "wandb")
        assert [row["prune/event"] for row in run.history if "prune/macs" in row] == [1, 2]
        assert run.column("prune/width/features.0") == [6, 4]
        assert len(run.column("val_loss")) == 3
        assert run.config["pruning"]["criterion"] == "l1"
        assert run.summary["prune/macs_kept"] < 0.5
        (artifact,) = [a for a in run.artifacts if a.type == "model"]
        assert {entry.path for entry in artifact.manifest.contents} >= {"plan.json", "pruned.pt", "report.html"}

    def test_a_logger_that_fails_at_an_event_costs_one_warning(self, tmp_path: Path) -> None:
        class Unplugged(CSVLogger):
            def log_metrics(self, metrics, step=None) -> None:
                if any(name.startswith("prune/") for name in metrics):
                    raise OSError("disk unplugged")
                super().log_metrics(metrics, step)

        module, report = UserModule(), RunReport(latency_repeats=2)
        trainer = trainer_of(tmp_path, report, pruning(), logger=Unplugged(tmp_path, name="run"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, UserData())
        assert trainer.current_epoch == 2
        assert module.features[0].out_channels == 4
        assert 1 <= len([w for w in caught if "disk unplugged" in str(w.message)]) <= 2


class TestUnpruned:
    def test_children_that_point_back_keep_pointing_at_the_network(self) -> None:
        class Child(nn.Module):
            def __init__(self, parent: nn.Module) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))
                object.__setattr__(self, "parent", parent)

        net = nn.Module()
        net.child = Child(net)
        kept = UnprunedSnapshot(net)
        pruned = net.child
        with kept.inside():
            assert net.child is not pruned
            assert net.child.parent is net
        assert net.child is pruned

    def test_numbers_that_shrinking_rewrites_come_and_go(self) -> None:
        net = nn.Sequential(nn.Linear(2, 4))
        net.width = 4
        kept = UnprunedSnapshot(net)
        net.width = 2
        with kept.inside():
            assert net.width == 4
        assert net.width == 2

    def test_a_copy_on_disk_brings_the_unpruned_network_back(self, tmp_path: Path) -> None:
        module, built_anew = (nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 4))}) for _ in range(2))
        UnprunedSnapshot(module["net"]).save(tmp_path / "kept.pt", module)
        again = UnprunedSnapshot.load(tmp_path / "kept.pt", built_anew)
        built_anew["net"][0] = nn.Linear(2, 3)
        with again.inside():
            assert torch.equal(built_anew["net"][0].weight, module["net"][0].weight)
        assert built_anew["net"][0].out_features == 3

    def test_after_an_error_inside_the_pruned_network_is_back(self) -> None:
        net = nn.Sequential(nn.Linear(2, 4))
        kept = UnprunedSnapshot(net)
        net[0] = nn.Linear(2, 3)
        with pytest.raises(RuntimeError, match="on purpose"), kept.inside():
            raise RuntimeError("on purpose")
        assert net[0].out_features == 3


@pytest.mark.slow
def test_two_processes_write_one_report(tmp_path: Path) -> None:
    words = ["fit", "--model=tests.user_project.UserModule", "--data=tests.user_project.UserData"]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=3"]
    words += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.callbacks+=FilterPruning"]
    words += ["--trainer.callbacks.criterion=l1", "--trainer.callbacks.filters=0.5", "--trainer.callbacks.schedule=1"]
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "infoprune", *words], cwd=tmp_path, capture_output=True, text=True, env=path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("In total") == 1
    assert len(list(tmp_path.rglob("report.html"))) == 1
    assert RunRecord.load(tmp_path / "logs/lightning_logs/version_0/record.json").layers[0].channels_after == 4
