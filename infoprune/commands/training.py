"""``infoprune fit|validate|test|predict``: LightningCLI, with a report where filters are pruned."""

from __future__ import annotations

import atexit
import contextlib
import logging
import pickle
import shlex
import warnings
import zipfile
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

# Imported for their names: jsonargparse finds classes by short name among those that are imported.
import infoprune.data
import infoprune.models.classifier  # noqa: F401
from infoprune.callbacks import FilterPruning, RunReport
from infoprune.callbacks.time_slice import SliceOver
from infoprune.commands.model_names import with_full_names
from infoprune.commands.offline import offline_runs, reach_wandb
from infoprune.commands.parser_errors import in_one_line
from infoprune.commands.refused_run import lightning_refusals, removed_if_refused
from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.report import print_tables
from infoprune.report.loggers import RunLog
from infoprune.report.run_folder import check_writable, run_folder

# What Lightning and its dependencies say on every run, and no user of this command can act upon.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter")  # names that were replaced by full ones
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda entry: "Tip:" not in entry.getMessage())


def run(words: list[str], args: list[str] | None = None) -> None:
    """Run a training command.

    Args:
        words: the command line, subcommand first.
        args: the same where it did not come from the shell, else None.
    """
    try:
        full = with_full_names(words, lightning=True)
        TrainingCLI(words, args if full == words else full)  # arguments that the shell gave are best read from there
    except SliceOver as over:
        print(f"infoprune: {over}")
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """Leave the process group, if there is one, while Python still runs.

    Gloo's threads may hold the last tensors that they sent, and to free one after the interpreter has ended aborts the
    process: exit code 134 after a run that went well. Lightning leaves NCCL's groups only. Not for a run that failed:
    what it still has under way with other processes may never end.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved configuration of a fit into its run folder, never into the current directory."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or self.already_saved:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            check_writable(folder)
            self.parser.save(self.config, str(folder / self.config_filename), skip_none=False, overwrite=True)
            RunLog(trainer.loggers).configuration(yaml.safe_load(self.parser.dump(self.config, skip_none=True)))
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
        self.asked = words[:1]
        raises = {"exit_on_error": False, "allow_abbrev": False}  # --trainer.max_epoch is a misspelling
        try:
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
                parser_kwargs={"prog": "infoprune", **raises, **dict.fromkeys(self.subcommands(), raises)},
                args=args,
            )
        except ArgumentError as error:
            parser = self._subcommand_parsers.get(words[0])
            known = [option for action in parser._actions for option in action.option_strings] if parser else []
            raise ConfigurationError(in_one_line(str(error), known)) from error
        except RuntimeError as error:
            if "in loading state_dict" in str(error):
                raise CheckpointError(
                    f"the checkpoint belongs to another architecture: {_first_clash(error)}"
                ) from error
            raise

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand that is asked for, or all: the parser of each takes a tenth of a second to build."""
        every = LightningCLI.subcommands()
        return {name: skip for name, skip in every.items() if [name] == self.asked} or every

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
        path = self._get(self.config, "ckpt_path")
        if path and Path(path).is_file():
            check_checkpoint(path)
        elif path and Path(path).suffix and "://" not in path and not Path(path).exists():  # no word such as "best"
            raise CheckpointError(f"--ckpt_path {path}: there is no such file")
        if self._get(self.config, "trainer.accelerator") == "gpu" and not has_gpu():
            raise ConfigurationError("--trainer.accelerator gpu: PyTorch sees no GPU here; give cpu or auto")
        threads = self._get(self.config, "num_threads")
        if threads is not None:
            torch.set_num_threads(threads)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone; newer LightningCLIs let the checkpoint's hyperparameters override it."""

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # the parser's, around what a constructor raised
            missing: BaseException | None = error
            while missing is not None and not isinstance(missing, ModuleNotFoundError):
                missing = missing.__cause__
            if missing is None:
                raise
            raise ConfigurationError(f"a class that is asked for lacks a package: {missing}") from error

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
        with lightning_refusals():
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with removed_if_refused(self.trainer), lightning_refusals():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Check that the loggers can write before the fit starts."""
        folders = [logger.save_dir for logger in self.trainer.loggers if self.trainer.is_global_zero]
        for folder in filter(None, folders):
            if "://" not in folder:
                check_writable(Path(folder))
        reach_wandb(self.trainer)

    def before_validate(self) -> None:
        """Say which weights are used where no checkpoint is given, and go on without W&B where it cannot be reached."""
        if not self._get(self.config, "ckpt_path"):
            rank_zero_info("no --ckpt_path: the model has the weights that it was built with")
        reach_wandb(self.trainer)

    before_test = before_predict = before_validate

    def after_fit(self) -> None:
        """Test the unpruned and the pruned model, finish the report, print the closing table."""
        if self.report is None or self.trainer.interrupted:
            return
        record = self.report.finish(self.trainer, self.model, self.datamodule)
        if self.trainer.is_global_zero:
            assert self.report.folder is not None
            print_tables(record)
            print(f"Report: {self.report.folder / 'report.html'}")
            for folder in offline_runs(self.trainer):
                print(f"W&B run, not sent: wandb sync {folder}")


def has_gpu() -> bool:
    """Return whether PyTorch sees a GPU, NVIDIA's, AMD's or Apple's."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def check_checkpoint(path: str) -> None:
    """Refuse a file that the Trainer cannot resume from, before anything is built.

    Args:
        path: what ``--ckpt_path`` says.

    Raises:
        CheckpointError: it is damaged, or was not written by a Trainer.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no checkpoint, or was cut short while it was written: give another one")
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError:
        return  # it holds more than plain data: whether that may be read is for the Trainer to say
    except Exception as error:  # a damaged file makes the reader fail in any way
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}): give another one") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise CheckpointError(
            f"{path} was not written by a Trainer. --ckpt_path takes its checkpoints; weights alone are for the module "
            "to load, as ImageClassifier does with --model.init_from"
        )


def _first_clash(error: RuntimeError) -> str:
    """Return the first of the tensors that PyTorch names when weights do not fit."""
    first = str(error).splitlines()[1].strip()
    return first if first.startswith("size mismatch") else first.split(", ")[0]


class _Parsers(TrainingCLI):
    """Make the parsers and parse nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _Made


class _Made(Exception):
    """Raised once the parsers are made."""


def parsers() -> dict[str, LightningArgumentParser]:
    """Return the parser of each training command."""
    cli = _Parsers.__new__(_Parsers)
    with contextlib.suppress(_Made):
        _Parsers.__init__(cli, [], [])
    return dict(cli._subcommand_parsers)
