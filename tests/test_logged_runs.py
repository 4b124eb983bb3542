"""What a whole fit leaves in TensorBoard and MLflow, read back from their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger

import infoprune
from infoprune.data import DigitsDataModule
from infoprune.models import CifarResNet, ImageClassifier
from infoprune.report import RunRecord
from infoprune.report.scalars import summary_values


def fit(logger: Logger, folder: Path) -> tuple[infoprune.FilterPruning, RunRecord]:
    """Run a small fit with two events, as a user would."""
    L.seed_everything(1)
    report = infoprune.RunReport(latency_repeats=2)
    pruning = infoprune.FilterPruning("l1", macs=0.5, schedule=[1, 2], allocation="uniform", validate_cuts=True)
    trainer = L.Trainer(
        max_epochs=3,
        limit_train_batches=2,
        limit_val_batches=1,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[report, pruning],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageClassifier(CifarResNet(depth=8, in_channels=1), num_classes=10), DigitsDataModule())
    assert report.folder is not None
    return pruning, RunRecord.load(report.folder / "record.json")


def at_events(pruning: infoprune.FilterPruning) -> dict[str, list[float]]:
    """Return some series that a logger has to hold at the two events."""
    first = pruning.history[0].layers[0]
    layers = [next(row for row in event.layers if row.name == first.name) for event in pruning.history]
    return {
        "prune/macs": [event.macs for event in pruning.history],
        "prune/before_cut/val/acc": [event.metrics_before["val/acc"] for event in pruning.history],
        "prune/after_cut/val/acc": [event.metrics_cut["val/acc"] for event in pruning.history],
        f"prune/width/{first.name}": [row.channels_after for row in layers],
    }


class TestTensorBoard:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[infoprune.FilterPruning, RunRecord, Any]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = tmp_path_factory.mktemp("tensorboard")
        logger = TensorBoardLogger(folder, name="tb")
        pruning, record = fit(logger, folder)
        return pruning, record, EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "histograms": 0}).Reload()

    def test_each_event_is_a_point_and_the_run_one_more(self, run: Any) -> None:
        pruning, record, events = run
        for name, values in at_events(pruning).items():
            assert [entry.step for entry in events.Scalars(name)] == [2, 4], name
            assert [entry.value for entry in events.Scalars(name)] == pytest.approx(values), name
        for name, value in summary_values(record).items():
            (entry,) = events.Scalars(name)
            assert (entry.step, entry.value) == (6, pytest.approx(value)), name

    def test_histograms_hold_the_scores_of_all_units(self, run: Any) -> None:
        pruning, _, events = run
        kept, removed = (events.Histograms(f"prune/scores/{fate}") for fate in ("kept", "removed"))
        for event, stayed, went in zip(pruning.history, kept, removed, strict=True):
            assert stayed.step == went.step == event.global_step
            assert stayed.histogram_value.num == sum(len(units) for units in event.kept.values())
            total = stayed.histogram_value.num + went.histogram_value.num
            assert total == sum(len(scores) for scores in event.scores.values())
            assert went.histogram_value.num > 0

    def test_tables_are_text(self, run: Any) -> None:
        pruning, record, events = run
        layers = [entry.tensor_proto.string_val[0].decode() for entry in events.Tensors("prune/layers/text_summary")]
        assert len(layers) == 2
        for text, event in zip(layers, pruning.history, strict=True):
            smaller = [row for row in event.layers if row.channels_after < row.channels_before]
            assert smaller
            for row in smaller:
                assert f"| {row.name} | {row.channels_before} → {row.channels_after} |" in text
            (last,) = (row for row in event.layers if row.name == "linear")  # loses inputs only
            assert (f"| {last.name} | {last.channels_after} |" in text) == (last.macs_after < last.macs_before)
        (summary,) = events.Tensors("prune/summary/text_summary")
        text = summary.tensor_proto.string_val[0].decode()
        assert text.startswith("CifarResNet lost")
        assert "| MACs |" in text
        assert all(warning in text for warning in record.warnings)


class TestMLflow:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[infoprune.FilterPruning, RunRecord, Any, str]:
        pytest.importorskip("mlflow", reason="MLflow is not installed")
        from lightning.pytorch.loggers import MLFlowLogger

        folder = tmp_path_factory.mktemp("mlflow")
        logger = MLFlowLogger(
            "pruning", tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=str(folder / "artifacts")
        )
        pruning, record = fit(logger, folder)
        assert logger.run_id is not None
        return pruning, record, logger.experiment, logger.run_id

    def test_each_event_is_a_point_and_the_run_one_more(self, run: Any) -> None:
        pruning, record, client, run_id = run
        for name, values in at_events(pruning).items():
            entries = client.get_metric_history(run_id, name)
            assert [entry.step for entry in entries] == [2, 4], name
            assert [entry.value for entry in entries] == pytest.approx(values), name
        for name, value in summary_values(record).items():
            (entry,) = client.get_metric_history(run_id, name)
            assert (entry.step, entry.value) == (6, pytest.approx(value)), name

    def test_options_are_parameters(self, run: Any) -> None:
        _, _, client, run_id = run
        params = client.get_run(run_id).data.params
        assert (params["pruning/criterion"], params["pruning/macs"]) == ("l1", "0.5")
        assert params["pruning/schedule"] == "[[1, 0.5], [2, 1.0]]"

    def test_files_are_artifacts(self, run: Any, tmp_path: Path) -> None:
        _, record, client, run_id = run
        files = {Path(file.path).name for file in client.list_artifacts(run_id, "pruning")}
        assert files == {"plan.json", "pruned.pt", "record.json", "report.html"}
        client.download_artifacts(run_id, "pruning", str(tmp_path))
        assert RunRecord.load(tmp_path / "pruning/record.json") == record
        model = infoprune.load(tmp_path / "pruning/pruned.pt", CifarResNet(depth=8, in_channels=1))
        assert sum(parameter.numel() for parameter in model.parameters()) == record.after.params
