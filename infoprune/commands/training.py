"""``infoprune fit|validate|test|predict``: LightningCLI, with a report where filters are pruned."""

from __future__ import annotations

import logging
import shlex
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

# Imported for their names: jsonargparse finds classes by short name among those that are imported.
import infoprune.data
import infoprune.models  # noqa: F401
from infoprune.callbacks import FilterPruning, RunReport
from infoprune.callbacks.run_folder import run_folder
from infoprune.errors import CheckpointError
from infoprune.report import print_tables

# What Lightning and its dependencies say on every run, and no user of this command can act upon.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda entry: "Tip:" not in entry.getMessage())


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration of a fit into its run folder, never into the current directory."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or self.already_saved:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / self.config_filename), skip_none=False, overwrite=True)
        self.already_saved = True


class TrainingCLI(LightningCLI):
    """LightningCLI for any LightningModule and any, or no, LightningDataModule.

    A fit with a `FilterPruning` callback gets a `RunReport` before it, if the configuration has none, and ends with the
    test of the unpruned and the pruned model and the closing table.

    Args:
        words: the command line, subcommand first, as the report shows it.
        args: the same where it did not come from the shell, else None.
    """

    report: RunReport | None = None

    def __init__(self, words: list[str], args: list[str] | None = None) -> None:
        self.command = shlex.join(["infoprune", *words])
        super().__init__(
            L.LightningModule,
            # None, though any datamodule is taken: a class here would make --data required.
            None,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=42,
            subclass_mode_model=True,
            # The optimizer is the module's own affair: --optimizer would silently replace configure_optimizers.
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "infoprune"},
            args=args,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--num_threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of PyTorch in each process; its own choice if not given. One is quickest for tiny nets",
        )

    @override
    def before_instantiate_classes(self) -> None:
        threads = self._get(self.config, "num_threads")
        if threads is not None:
            torch.set_num_threads(threads)

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; its hyperparameters do not override the configuration, as LightningCLI's own would."""
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path and Path(path).is_file() and not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is no checkpoint, or was cut short while it was written: give another one")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        callbacks = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        pruning = next((i for i, callback in enumerate(callbacks) if isinstance(callback, FilterPruning)), None)
        self.report = next((callback for callback in callbacks if isinstance(callback, RunReport)), None)
        if pruning is not None and self.report is None:
            self.report = RunReport()
            callbacks = [*callbacks[:pruning], self.report, *callbacks[pruning:]]
        if self.report is not None:
            self.report.command = self.command
            self.report.config = self._parser(self.subcommand).dump(self.config[str(self.subcommand)], skip_none=False)
            self.report.seed = self._get(self.config, "seed_everything")
            self.report.tests_follow = self.subcommand == "fit"
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_fit(self) -> None:
        """Test the unpruned and the pruned model, finish the report, print the closing table."""
        if self.report is None or self.trainer.interrupted:
            return
        record = self.report.finish(self.trainer, self.model, self.datamodule)
        if self.trainer.is_global_zero:
            assert self.report.folder is not None
            print_tables(record)
            print(f"Report: {self.report.folder / 'report.html'}")
