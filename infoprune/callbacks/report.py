"""`RunReport`: measure the effect of pruning on a run, and write a folder with the report."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from typing_extensions import override

from infoprune.callbacks._compat import DualNamespaceCallback
from infoprune.callbacks.engine.network_finder import COMPILED
from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.measure import (
    Metrics,
    UnprunedSnapshot,
    ValidationMetrics,
    has_test,
    latencies,
    metrics_on_test_data,
    only_progress,
)
from infoprune.distributed import on_all_ranks
from infoprune.errors import CheckpointError, ConfigurationError, PlanError
from infoprune.files import write_text_whole
from infoprune.report.collect import whole_run
from infoprune.report.environment import device_name, versions
from infoprune.report.loggers import RunLog
from infoprune.report.record import RunRecord, Totals
from infoprune.report.run_folder import check_writable, run_folder
from infoprune.report.table import tables_as_text
from infoprune.report.text import choose_metric, speed_remarks
from infoprune.saving import save
from infoprune.shapes import shapes_of
from infoprune.structure import plan_of
from infoprune.structure.explain import explain_group

UNPRUNED = "unpruned.pt"
"""Where the unpruned network is kept in the run folder, for a run that is resumed after an event."""


class RunReport(DualNamespaceCallback):
    """Compare the unpruned with the pruned model, and write a report when the fit ends.

    It needs a `FilterPruning` callback in the fit, and must come *before* it in the list, so that it sees the unpruned
    model. Just before the first event it copies the network. When the fit ends it measures both models on the same
    device, and writes into the run folder:

    - ``report.html``: the report, one self-contained page; ``record.json``: the same as data (`infoprune.report`);
    - ``plan.json``: the removed channels; ``pruned.pt``: the pruned network, for `infoprune.load`.

    Until the fit ends, ``unpruned.pt`` in the run folder contains the copy, for a resumed run with the same folder.

    The run folder is the logger's; without a logger it is ``pruning_run`` in the Trainer's ``default_root_dir``.
    ``infoprune fit`` adds this callback and tests both models; from Python, call `finish` after the fit to test them.

    Args:
        latency_repeats: measured forward passes of each model; 0: the latency is not measured.
        folder: where to write instead of the logger's folder.

    Raises:
        ConfigurationError: before training starts: there is no `FilterPruning` in the fit, or it comes before this
            callback; the folder cannot be written.
    """

    def __init__(self, latency_repeats: int = 50, folder: str | None = None) -> None:
        if latency_repeats < 0:
            raise ConfigurationError(f"latency_repeats={latency_repeats} must be at least 0")
        self.latency_repeats = latency_repeats
        self.folder = Path(folder) if folder is not None else None
        self.command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.config = ""
        self.seed: int | None = None
        self.tests_follow = False
        """Whether somebody calls `finish` after the fit, so that the end of the fit itself writes nothing."""
        self.history: list[Metrics] = []
        self._unpruned: UnprunedSnapshot | None = None
        self._to_save = False
        self._notes: list[str] = []
        self._coupling: dict[str, str] = {}
        self._validation = ValidationMetrics()

    # -- following the run --------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._check_order(trainer)
        self.folder = self.folder or run_folder(trainer)
        if trainer.is_global_zero:
            check_writable(self.folder)
        if self._unpruned is None:
            self._remember_unpruned(trainer, pl_module, self.folder / UNPRUNED)

    def _remember_unpruned(self, trainer: L.Trainer, pl_module: L.LightningModule, kept: Path) -> None:
        """Load the unpruned copy of the run that this one resumes, if every process sees it.

        The network is certain to be unpruned only at this point, when it is not yet known whether the run is resumed.
        If it is not, the first event makes a new copy.
        """
        if trainer.strategy.reduce_boolean_decision(kept.is_file()):
            try:
                self._unpruned = UnprunedSnapshot.load(kept, pl_module)
            except CheckpointError as error:  # of another run in the same folder, or of one that was killed
                self._notes.append(f"{error}; so the unpruned model of the run before was not measured.")

    def _check_order(self, trainer: L.Trainer) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if callbacks.index(self) > callbacks.index(pruning_of(trainer)):
            raise ConfigurationError(
                "RunReport comes after FilterPruning among the callbacks and would never see the unpruned model: "
                "put it before"
            )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pruning = pruning_of(trainer)
        due = pruning.is_due(trainer.current_epoch) or trainer.fast_dev_run  # type: ignore[attr-defined]
        if due and not pruning.history:
            on_all_ranks(lambda: self._look_at_unpruned(trainer, pl_module, pruning))

    def _look_at_unpruned(self, trainer: L.Trainer, pl_module: L.LightningModule, pruning: FilterPruning) -> None:
        """Copy the network, and record its channel groups."""
        pruning.prepare(trainer, pl_module)
        if pruning.inputs is not None and trainer.is_global_zero:
            structure = pruning.structure(pl_module)
            self._coupling = {group.name: explain_group(structure, group) for group in structure.prunable}
        try:
            self._unpruned = UnprunedSnapshot(pruning.network(pl_module))
        except Exception as error:
            # Copying runs the user's code; a module that cannot be copied can still be pruned.
            self._notes.append(f"The unpruned model could not be copied ({error}), so it was not measured at the end.")
            return
        self._to_save = trainer.is_global_zero

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._to_save:  # the first event is over; one that fails leaves no file
            assert self.folder is not None
            assert self._unpruned is not None
            self._to_save = False
            with _side_file(self.folder / UNPRUNED) as path:
                self._unpruned.save(path, pl_module)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation.start(trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validation.end(trainer)
            self.history = [entry for entry in self.history if entry["epoch"] != trainer.current_epoch]
            self.history.append({"epoch": float(trainer.current_epoch), **self._validation.metrics})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "coupling": self._coupling}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._coupling = list(state_dict["history"]), dict(state_dict["coupling"])

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.tests_follow:
            record = self._write(trainer, pl_module, {}, {})
            assert self.folder is not None
            rank_zero_info(f"{tables_as_text(record)}\nReport: {self.folder / 'report.html'}")

    # -- closing it ---------------------------------------------------------------------------------------------------

    def finish(
        self, trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> RunRecord:
        """Run the unpruned and the pruned model over the test data, and write the run folder.

        Call it after the fit, on every process. Without a ``test_step`` or test data, the report shows the metrics of
        the validations during the fit.

        Args:
            trainer: the Trainer of the fit.
            module: the module that was fitted.
            datamodule: its data, if the fit had a datamodule.

        Returns:
            The record of the run.
        """
        before: Metrics = {}
        after: Metrics = {}
        if has_test(module, datamodule):
            if self._unpruned is not None:
                with only_progress(trainer), self._unpruned.inside():
                    before = metrics_on_test_data(trainer, module, datamodule)
            after = metrics_on_test_data(trainer, module, datamodule)
        return self._write(trainer, module, before, after)

    def _write(self, trainer: L.Trainer, module: L.LightningModule, before: Metrics, after: Metrics) -> RunRecord:
        record = self._record(trainer, module, before, after)
        assert self.folder is not None
        if trainer.is_global_zero:
            network = pruning_of(trainer).network(module)
            with _side_file(self.folder / "plan.json") as path:
                plan_of(network).save(path)
            with _side_file(self.folder / "pruned.pt") as path:
                save(network, path)
            with _side_file(self.folder / UNPRUNED) as path:
                path.unlink(missing_ok=True)
            record.files = self._files(trainer)
            with _side_file(self.folder / "record.json") as path:
                record.save(path)
            from infoprune.report import render_html

            with _side_file(self.folder / "report.html") as path:
                write_text_whole(path, render_html(record))
            RunLog(trainer.loggers).finish(record, self.folder, trainer.global_step)
        return record

    def _record(self, trainer: L.Trainer, module: L.LightningModule, before: Metrics, after: Metrics) -> RunRecord:
        pruning = pruning_of(trainer)
        original, events = pruning.unpruned, pruning.history
        totals = self._totals(trainer, module)
        totals[0].metrics |= before
        totals[1].metrics |= after
        both = [name for name in totals[1].metrics if name in totals[0].metrics]
        return RunRecord(
            model=type(pruning.network(module)).__name__,
            criterion=str(pruning.options["criterion"]),
            before=totals[0],
            after=totals[1],
            layers=whole_run(events),
            events=events,
            options=pruning.options,
            frozen=dict(original.frozen) if original else {},
            coupling=self._coupling,
            history=self.history,
            metric=choose_metric(both),
            warnings=[*self._notes, *speed_remarks(*totals)],
            versions=versions(),
            seed=self.seed,
            device=device_name(trainer.strategy.root_device),
            command=self.command,
            config=self.config,
            network=_path_of(pruning.network(module), module),
            inputs=shapes_of(pruning.inputs),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _totals(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[Totals, Totals]:
        """Return cost, latency and validation metrics before the first event and now."""
        pruning = pruning_of(trainer)
        network, events, original = pruning.network(module), pruning.history, pruning.unpruned
        params = sum(parameter.numel() for parameter in network.parameters())
        macs = events[-1].macs if events else original.macs if original else 0
        before = Totals(original.macs, original.params) if original else Totals(macs, params)
        after = Totals(macs, params)
        latest = {name: value for name, value in self.history[-1].items() if name != "epoch"} if self.history else {}
        before.metrics = dict(events[0].metrics_before if events else latest)
        after.metrics = dict(events[-1].metrics_after if events else latest)
        if self.latency_repeats and self._unpruned is not None and trainer.is_global_zero:
            device = trainer.strategy.root_device
            times = latencies(
                lambda: pruning.network(module), self._unpruned, pruning.inputs, device, self.latency_repeats
            )
            for totals, time in zip((before, after), times, strict=True):
                totals.latency_s, totals.latency_spread_s = time.median, time.spread
        return before, after

    def _files(self, trainer: L.Trainer) -> dict[str, str]:
        """Return the files of the run folder: label -> path relative to it."""
        assert self.folder is not None
        files = {
            "report": "report.html",
            "record": "record.json",
            "plan": "plan.json",
            "pruned model": "pruned.pt",
            "config": "config.yaml",
            "metrics": "metrics.csv",
        }
        files = {
            label: name for label, name in files.items() if name.startswith("re") or (self.folder / name).is_file()
        }
        saver = trainer.checkpoint_callback
        for path in (getattr(saver, "last_model_path", ""), getattr(saver, "best_model_path", "")):
            if path and Path(path).resolve().is_relative_to(self.folder.resolve()):
                files.setdefault("checkpoint", str(Path(path).resolve().relative_to(self.folder.resolve())))
        return files


@contextmanager
def _side_file(path: Path) -> Iterator[Path]:
    """Warn if a file of the run folder cannot be written, since a full disk must not end a fit."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except (OSError, CheckpointError, PlanError) as error:
        warnings.warn(f"the fit goes on without {path}, which could not be written: {error}", stacklevel=3)


def pruning_of(trainer: L.Trainer) -> FilterPruning:
    """Return the Trainer's `FilterPruning` callback.

    Args:
        trainer: the Trainer of a fit.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FilterPruning):
            return callback
    raise ConfigurationError("RunReport reports on pruning, but the Trainer has no FilterPruning callback: add one")


def _path_of(network: nn.Module, module: L.LightningModule) -> str:
    """Return the path of a network in its LightningModule, without wrappers of compiled networks."""
    path = next(name for name, part in module.named_modules() if part is network)
    return path.removesuffix(COMPILED).removesuffix(".")
