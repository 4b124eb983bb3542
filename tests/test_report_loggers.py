"""Every logger receives the events; the W&B client's own file is read back; a failing logger costs one warning."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from infoprune.report import RunRecord
from infoprune.report.loggers import RunLog
from infoprune.report.scalars import event_scalars, summary_values
from tests.sample_record import sample_record
from tests.wandb_file import OfflineRun, read_offline_run


def tell(log: RunLog, record: RunRecord, folder: Path) -> None:
    log.start(record.options)
    for event in record.events:
        log.event(event)
    log.finish(record, folder, step=999)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    (folder / "report.html").write_text("<html>")
    return folder


@pytest.fixture
def offline(tmp_path: Path, run_folder: Path) -> OfflineRun:
    import wandb

    record = sample_record()
    (tmp_path / "w").mkdir()
    logger = WandbLogger(project="test", save_dir=tmp_path / "w", offline=True)
    logger.log_metrics({"val/acc": 0.5}, step=3)
    tell(RunLog([logger]), record, run_folder)
    wandb.finish()
    return read_offline_run(tmp_path / "w")


class TestWandb:
    def test_scalars_arrive_at_every_event(self, offline: OfflineRun) -> None:
        record = sample_record()
        assert [row["prune/event"] for row in offline.history if "prune/macs" in row] == [1, 2]
        assert offline.column("prune/macs") == [event.macs for event in record.events]
        assert offline.column("prune/params") == [event.params for event in record.events]
        assert offline.column("prune/width/layer1.0.conv1") == [10, 6]
        assert [row["trainer/global_step"] for row in offline.history if "prune/events" not in row] == [3, 240, 360]

    def test_pruning_metrics_have_their_own_step(self, offline: OfflineRun) -> None:
        assert offline.metrics["prune/macs"] == "prune/event"
        assert offline.metrics["prune/width/layer1.0.conv1"] == "prune/event"
        # Clients before 0.20 write each metric down that Lightning's "*" stands for, newer ones only the "*".
        assert offline.metrics.get("val/acc", offline.metrics["*"]) == "trainer/global_step"

    def test_tables_and_histograms_hold_the_event(self, offline: OfflineRun) -> None:
        record = sample_record()
        layers, units = offline.column("prune/layers"), offline.column("prune/units")
        assert [table["nrows"] for table in layers] == [20, 20]
        assert units[1]["nrows"] == sum(len(scores) for scores in record.events[1].scores.values())
        kept, removed = offline.column("prune/scores/kept")[0], offline.column("prune/scores/removed")[0]
        assert kept["bins"] == removed["bins"]
        assert sum(kept["values"]) == sum(len(units) for units in record.events[0].kept.values())
        assert sum(removed["values"]) > 0

    def test_a_heat_map_of_layers_by_events(self, offline: OfflineRun, tmp_path: Path) -> None:
        first, second = offline.column("prune/heat_map")
        assert first["_type"] == second["_type"] == "html-file"
        (file,) = (tmp_path / "w").rglob(Path(second["path"]).name)
        drawn = file.read_text()
        record = sample_record()
        assert all(f">{row.name}<" in drawn for row in record.layers)
        shares = [100 * e.layers[1].channels_after / record.layers[1].channels_before for e in record.events]
        assert all(f">{share:.0f} %<" in drawn for share in shares)
        assert ">event 2<" in drawn
        assert ">event 2<" not in next((tmp_path / "w").rglob(Path(first["path"]).name)).read_text()

    def test_a_table_of_all_events_with_metrics_before_and_after(self, offline: OfflineRun, tmp_path: Path) -> None:
        (table,) = offline.column("prune/events")
        (file,) = (tmp_path / "w").rglob(Path(table["path"]).name)
        content = json.loads(file.read_text())
        rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
        for row, event in zip(rows, sample_record().events, strict=True):
            assert (row["epoch"], row["macs"]) == (event.epoch, event.macs)
            assert row["before val/top1"] == event.metrics_before["val/top1"]
            assert row["after val/top1"] == event.metrics_after["val/top1"]

    def test_one_chart_of_all_widths(self, offline: OfflineRun) -> None:
        assert len(offline.column("prune/widths_table")) == 2

    def test_config_and_summary(self, offline: OfflineRun) -> None:
        assert offline.config["pruning"]["criterion"] == "capacity_independence"
        for name, value in summary_values(sample_record()).items():
            assert offline.summary[name] == pytest.approx(value)

    def test_the_run_folder_is_one_model_artifact(self, offline: OfflineRun) -> None:
        (artifact,) = [a for a in offline.artifacts if a.type == "model"]
        assert artifact.name.startswith("pruned-")
        assert {entry.path for entry in artifact.manifest.contents} == {"plan.json", "report.html"}
        assert json.loads(artifact.metadata)["criterion"] == "capacity_independence"


def test_csv_gets_the_same_scalars(tmp_path: Path, run_folder: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv")
    record = sample_record()
    tell(RunLog([logger]), record, run_folder)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["prune/macs"]) for row in rows if row["prune/macs"]] == [event.macs for event in record.events]
    assert float(rows[-1]["prune/macs_kept"]) == pytest.approx(record.after.macs / record.before.macs)
    assert rows[-1]["step"] == "999"


def test_tensorboard_gets_the_same_scalars(tmp_path: Path, run_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tb")
    record = sample_record()
    tell(RunLog([logger]), record, run_folder)
    events = EventAccumulator(logger.log_dir).Reload()
    for name, value in event_scalars(record.events[1]).items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
        assert events.Scalars(name)[-1].step == 360


class Unplugged(CSVLogger):
    """A logger whose disk goes away after the first event."""

    calls = 0

    def log_metrics(self, metrics, step=None) -> None:
        Unplugged.calls += 1
        if Unplugged.calls > 1:
            raise OSError("disk unplugged")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_costs_one_warning(tmp_path: Path, run_folder: Path) -> None:
    Unplugged.calls = 0
    broken, healthy = Unplugged(tmp_path, name="broken"), CSVLogger(tmp_path, name="healthy")
    loggers: list[Logger] = [broken, healthy]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tell(RunLog(loggers), sample_record(), run_folder)
    assert [str(w.message) for w in caught if "Unplugged" in str(w.message)] == [
        "Unplugged failed with OSError: disk unplugged; the run goes on and this logger gets no more pruning metrics"
    ]
    assert Unplugged.calls == 2
    assert (Path(healthy.log_dir) / "metrics.csv").read_text().count("\n") == 4
    assert loggers == [broken, healthy]


def test_mlflow_gets_the_same_scalars_and_the_files(
    tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    record, logger = sample_record(), MLFlowLogger("pruning", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    tell(RunLog([logger]), record, run_folder)
    stored = logger.experiment.get_run(logger.run_id).data
    assert stored.params["pruning/criterion"] == record.criterion
    for name, value in {**event_scalars(record.events[-1]), **summary_values(record)}.items():
        assert stored.metrics[name] == pytest.approx(value), name
    files = {file.path for file in logger.experiment.list_artifacts(logger.run_id, "pruning")}
    assert files == {"pruning/plan.json", "pruning/report.html"}
