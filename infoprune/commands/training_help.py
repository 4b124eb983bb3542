"""The short help of ``fit``, ``validate``, ``test`` and ``predict``.

LightningCLI lists several hundred lines of options, for which PyTorch and Lightning have to be imported. This page
names the options that most runs need, and imports neither. `tests/test_training_help.py` compares it with the real
parsers.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from infoprune.commands.known_names import ALLOCATIONS, BACKENDS, CRITERIA
from infoprune.errors import ConfigurationError

FULL = "--help=all"
"""Prints the list of LightningCLI."""

PRUNING = "--trainer.callbacks."
"""What the options of a callback begin with, behind ``--trainer.callbacks+=FilterPruning``."""

WHAT = {
    "fit": "Train a LightningModule. With FilterPruning among the callbacks: prune it at scheduled epochs, fine-tune,\n"
    "and write a report that compares the pruned with the unpruned model.",
    "validate": "Evaluate a LightningModule on the validation data.",
    "test": "Evaluate a LightningModule on the test data.",
    "predict": "Run a LightningModule on the prediction data.",
}

_RUN = "runs/quickstart/version_0"

EXAMPLES = {
    "fit": """\
  infoprune fit --config configs/quickstart.yaml --trainer.max_epochs 20
  infoprune fit --model my_package.MyModule --data my_package.MyData --trainer.max_epochs 10 \\
      --trainer.callbacks+=FilterPruning --trainer.callbacks.macs=0.5 --trainer.callbacks.schedule="[2, 4, 6]"
  infoprune fit --model resnet18 --model.num_classes 10 --data CIFAR10DataModule --data.root data \\
      --trainer.callbacks+=FilterPruning --trainer.callbacks.macs=0.5 --trainer.callbacks.schedule=1""",
    **{
        command: f"  infoprune {command} --config {_RUN}/config.yaml --ckpt_path {_RUN}/checkpoints/last.ckpt"
        for command in ("validate", "test", "predict")
    },
}

MORE = """\
finding out more:
  infoprune {command} --help=all                              every option, as LightningCLI lists them
  infoprune {command} --trainer.callbacks.help=FilterPruning  options of one callback
  infoprune {command} --model.help=ImageClassifier            options of one module; --data.help=NAME: of data
  infoprune {command} --config my.yaml --print_config         the configuration with all defaults filled in"""


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Help with defaults, and examples with their line breaks."""


def asked_for(words: Sequence[str]) -> bool:
    """Return whether a command line asks for the short help.

    Args:
        words: the command line.

    Raises:
        ConfigurationError: ``--help`` has a value other than ``all``.

    Example:
        >>> asked_for(["fit", "--help"]), asked_for(["fit", "--help=all"]), asked_for(["fit", "--model.help"])
        (True, False, False)
    """
    for word in words:
        if word.startswith("--help=") and word != FULL:
            raise ConfigurationError(f"{word}: give --help, or {FULL} for every option")
    return FULL not in words and not {"-h", "--help"}.isdisjoint(words)


def page(command: str) -> ArgumentParser:
    """Return a parser that prints the short help of a training command, and parses nothing.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    parser = ArgumentParser(
        f"infoprune {command}",
        usage=f"infoprune {command} [--config FILE] [options]",
        description=WHAT[command],
        epilog=f"examples:\n{EXAMPLES[command]}\n\n{MORE.format(command=command)}",
        formatter_class=_Formatter,
        argument_default=SUPPRESS,  # no default is shown for options without one
        add_help=False,
    )
    _add_run(parser, command)
    _add_trainer(parser, command)
    if command == "fit":
        _add_pruning(parser)
    return parser


def _add_run(parser: ArgumentParser, command: str) -> None:
    """Add what is run, on what."""
    group = parser.add_argument_group("model, data, configuration")
    group.add_argument("--config", metavar="FILE", help="options in YAML; those of the command line override them")
    group.add_argument(
        "--model",
        metavar="CLASS",
        help="LightningModule by its path (my_package.MyModule) or ImageClassifier; a network by name (resnet18, "
        "timm:resnet50), for classifying. Its arguments: --model.NAME VALUE",
    )
    group.add_argument(
        "--data",
        metavar="CLASS",
        help="LightningDataModule by its path, or of this package: CIFAR10DataModule, CIFAR100DataModule, "
        "DigitsDataModule, FashionMNISTDataModule, ImageFolderDataModule. Its arguments: --data.NAME VALUE",
    )
    use = "checkpoint to resume from" if command == "fit" else "checkpoint whose weights are used"
    group.add_argument("--ckpt_path", metavar="FILE", help=f"{use}, of a pruned model too")
    group.add_argument("--seed_everything", metavar="SEED", default="42", help="seed of all random numbers")
    group.add_argument("--num_threads", metavar="N", help="CPU threads of PyTorch in each process")


def _add_trainer(parser: ArgumentParser, command: str) -> None:
    """Add the options of the Trainer that most runs need."""
    group = parser.add_argument_group("Trainer")
    if command == "fit":
        group.add_argument("--trainer.max_epochs", metavar="N", help="epochs to train; 1000 if not given")
    group.add_argument("--trainer.accelerator", metavar="NAME", default="auto", help="cpu, gpu, mps, ...")
    group.add_argument("--trainer.devices", metavar="N", default="auto", help="number of devices, or their indices")
    group.add_argument("--trainer.strategy", metavar="NAME", default="auto", help="ddp for several devices")
    group.add_argument("--trainer.precision", metavar="NAME", help="16-mixed, bf16-mixed, ...; 32-true if not given")
    group.add_argument(
        "--trainer.logger", metavar="CLASS", help="CSVLogger, TensorBoardLogger, WandbLogger, MLFlowLogger, ..."
    )
    group.add_argument(
        "--trainer.callbacks+", metavar="CLASS", help="add a callback; its arguments follow: --trainer.callbacks.NAME"
    )
    group.add_argument("--trainer.fast_dev_run", metavar="N", default="false", help="run N batches only, as a trial")


def _add_pruning(parser: ArgumentParser) -> None:
    """Add the options of FilterPruning that most runs need."""
    group = parser.add_argument_group("FilterPruning, behind --trainer.callbacks+=FilterPruning")

    def add(name: str, metavar: str, text: str, default: str = SUPPRESS) -> None:
        group.add_argument(PRUNING + name, metavar=metavar, help=text, default=default)

    add("schedule", "WHEN", "epochs with a cut: 2, [2, 4, 6], or {start: 2, end: 10, every: 4, kind: cubic}. Required")
    add("macs", "SHARE", "multiply-accumulates to keep; this, params, filters or latency is required")
    add("params", "SHARE", "parameters to keep")
    add("filters", "SHARE", "filters to keep in every group")
    add("latency", "SHARE", "time of a forward pass to keep, measured in the backend")
    add("criterion", "NAME", f"which filters go: {', '.join(CRITERIA)}", default="l1")
    add("allocation", "NAME", f"how many each layer keeps: {', '.join(ALLOCATIONS)}", default="auto")
    add("backend", "NAME", f"where the model will run: {', '.join(BACKENDS)}")
    add("round_to", "N", "widths are multiples of this", default="auto")
    add("frozen", "NAMES", "layers that keep all filters, patterns allowed: [stem, head.*]")
    add("recalibration_batches", "N", "batches that measure batch norm again after a cut", default="0")
    add("reconstruction_batches", "N", "batches that fit the next layers to their former outputs", default="auto")
    add("validate_cuts", "BOOL", "validate after each cut, before any training", default="false")
    group.description = (
        "SHARE is in (0, 1]. RunReport is added by itself; Distillation and SparsityWarmup stand beside FilterPruning."
    )
