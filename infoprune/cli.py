"""Run the ``infoprune`` command: find the subcommand, and print an error in the user's options as one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from infoprune.commands import training_help
from infoprune.commands.model_names import with_full_names
from infoprune.commands.unknown_class import check_class_names
from infoprune.errors import ConfigurationError, InfopruneError, nearest
from infoprune.version import __version__

TRAINING = ("fit", "validate", "test", "predict")
"""Subcommands that run a Lightning Trainer."""

TOOLS = ("inspect", "prune", "export", "benchmark", "compare", "report", "plot", "dashboard", "completion")
"""Subcommands that work on a model without training it: modules of `infoprune.commands` with ``make`` and ``run``."""

DEBUG = "INFOPRUNE_DEBUG"
"""Environment variable: set to 1 to see the traceback of an error."""

HELP = """\
usage: infoprune COMMAND [options]

Make trained CNNs smaller and faster inside a Lightning fit.

commands:
  fit          train; with FilterPruning among the callbacks: prune, fine-tune, report
  validate     evaluate on the validation data
  test         evaluate on the test data
  predict      run on the prediction data
  inspect      coupled and frozen layers with reasons, the cost of each layer
  prune        prune a model in one step, without training
  export       ONNX, OpenVINO, ExecuTorch, torch.export program, plain weights; outputs compared, int8
  benchmark    latency, throughput and memory, against the unpruned and a uniformly narrowed model
  compare      criteria by budgets: a table and a picture
  report       rewrite the report of a run, or compare two runs
  plot         pictures of a run from its folder
  dashboard    one W&B dashboard for the whole team
  completion   completion of all this for bash, zsh or tcsh

any LightningModule and LightningDataModule work, by class_path, in a config or on the command line:
  infoprune fit --config configs/quickstart.yaml
  infoprune fit --config my.yaml --trainer.callbacks+=FilterPruning \\
      --trainer.callbacks.criterion=capacity_independence --trainer.callbacks.macs=0.5 \\
      --trainer.callbacks.schedule="[2, 4, 6]"
  infoprune fit --model my_package.MyModule --data my_package.MyData --trainer.max_epochs 10
  infoprune test --config runs/quickstart/version_0/config.yaml --ckpt_path runs/.../last.ckpt

any module works too: by the name that torchvision or timm gives it, by class_path, or the folder of a run:
  infoprune inspect --model resnet18 --input_shape 1,3,224,224
  infoprune inspect --model timm:resnet50 --model.num_classes 10 --input_shape 1,3,224,224
  infoprune prune --model CifarResNet --weights resnet56.pt --input_shape 1,3,32,32 --macs 0.5 --out pruned
  infoprune export --model pruned --out exported

finding out more:
  infoprune fit --help                                   the options that most runs need; --help=all: every option
  infoprune fit --trainer.callbacks.help=FilterPruning   options of one class
  infoprune fit --config my.yaml --print_config          the configuration with all defaults filled in
  infoprune fit --print_config=comments > my.yaml        the same with every option explained: a file to start from
  infoprune prune --help                                 options and examples of the other commands
  infoprune --version

After an error, INFOPRUNE_DEBUG=1 shows the traceback. Exit codes: 0 done, 1 failed while running, 2 wrong input.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the ``infoprune`` command.

    Args:
        args: command line, ``sys.argv[1:]`` by default.

    Returns:
        The exit code: 0, or 2 after an error in the options, which is printed as one line on stderr.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    infoprune ...
    0
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else 2
    if words == ["--version"]:
        print(f"infoprune {__version__}")
        return 0
    try:
        _run(words, given=args is not None)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        print(f"infoprune: error: {mistake}", file=sys.stderr)
        return 2
    return 0


def _mistake(error: BaseException | None) -> BaseException | None:
    """Return the error in the options that caused an error, or None; parsers wrap the errors of constructors."""
    while error is not None and not isinstance(error, InfopruneError | OSError):
        if type(error).__name__ == "MisconfigurationException":  # of Lightning, which need not be imported yet
            return error
        error = error.__cause__
    return error


def _run(words: list[str], given: bool) -> None:
    sys.path.append(os.getcwd())  # a console script does not look there, and that is where a user's modules are
    command = words[0]
    if command in TOOLS:
        tool = importlib.import_module(f"infoprune.commands.{command}")
        tool.run(with_full_names(words[1:]))
        return
    if command not in TRAINING and not (command.startswith("-") and set(TRAINING) & set(words)):
        raise ConfigurationError(
            f"there is no command {command!r}{nearest(command, TRAINING + TOOLS)}; infoprune --help lists them"
        )
    if training_help.asked_for(words):
        training_help.page(next(word for word in words if word in TRAINING)).print_help()
        return
    # Importing Lightning takes seconds, which help, version and misspelt classes need not wait for.
    if "lightning" not in sys.modules:
        check_class_names(words)
    from infoprune.commands import training

    full = ["--help" if word == training_help.FULL else word for word in words]
    training.run(full, full if given or full != words else None)
