"""The short help of the training commands: quick, and true to the real parsers."""

from __future__ import annotations

import argparse
import inspect
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infoprune.callbacks import FilterPruning
from infoprune.cli import TRAINING, main
from infoprune.commands.training import parsers
from infoprune.commands.training_help import PRUNING, page
from tests import warm
from tests.tiers import thinned

ROOT = Path(__file__).resolve().parents[1]
NAMED = [
    (command, action.option_strings[0], action.default)
    for command in TRAINING
    for action in page(command)._actions
    if command == "fit" or not action.option_strings[0].startswith(PRUNING)
]
"""Command, option and default of every line of the pages."""


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    return dict(parsers())


def said(default: str) -> Any:
    """Return the default that a page names; an option without one has none in the parser either."""
    return None if default is argparse.SUPPRESS else yaml.safe_load(default)


def lightnings(parser: Any, option: str) -> Any:
    """Return the default that LightningCLI's parser has for an option that it takes."""
    (action,) = (action for action in parser._actions if option in action.option_strings)
    return action.default


def callbacks(option: str) -> Any:
    """Return the default of an option of FilterPruning; None where there is none, and for an empty list."""
    default = inspect.signature(FilterPruning).parameters[option.removeprefix(PRUNING)].default
    return None if default is inspect.Parameter.empty or default == () else default


@pytest.mark.parametrize(("command", "option", "default"), NAMED)
def test_every_option_exists_and_has_the_default_that_the_page_names(
    command: str, option: str, default: str, real: dict[str, Any]
) -> None:
    if option == "--config":
        assert default is argparse.SUPPRESS
        assert option in real[command]._option_string_actions
    elif option.startswith(PRUNING):
        assert callbacks(option) == said(default)
    else:
        assert lightnings(real[command], option) == said(default)


def test_required_options_are_called_so() -> None:
    required = {
        name for name, value in inspect.signature(FilterPruning).parameters.items() if value.default is value.empty
    }
    lines = {action.option_strings[0]: action.help or "" for action in page("fit")._actions}
    assert {name.removeprefix(PRUNING) for name, text in lines.items() if text.endswith("Required")} == required


@pytest.mark.parametrize("command", thinned(TRAINING))
def test_examples_are_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those with the reader's own classes and files, with some that exist."""
    examples = page(command).epilog.partition("\n\n")[0].replace("\\\n", "")  # type: ignore[union-attr]
    lines = [line.strip() for line in examples.splitlines()[1:]]
    assert lines
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    for line in lines:
        for name, ours in {
            "my_package.MyModule": "tests.user_project.UserModule",
            "my_package.MyData": "tests.user_project.UserData",
            "runs/quickstart/version_0/config.yaml": "configs/quickstart.yaml",
        }.items():
            line = line.replace(name, ours)
        with pytest.raises(SystemExit, match="0"):
            main([*shlex.split(line)[1:], "--print_config"])
        assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("command", TRAINING)
def test_help_prints_the_page_wherever_it_stands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", "my.yaml", "--help"]) == 0
    text = capsys.readouterr().out
    assert text == page(command).format_help()
    assert f"infoprune {command} --help=all" in text


def test_all_prints_the_list_of_lightning_and_no_warning() -> None:
    done = warm.python("-m", "infoprune", "fit", "--help=all")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--trainer.gradient_clip_val", "--trainer.barebones", "--weights_only"):
        assert option in done.stdout
        assert option not in page("fit").format_help()


def test_another_value_of_help_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help=al"]) == 2
    assert capsys.readouterr().err == "infoprune: error: --help=al: give --help, or --help=all for every option\n"


def test_help_imports_neither_pytorch_nor_a_parser_of_classes() -> None:
    script = """
import sys
from infoprune.cli import main
for command in ("fit", "validate", "test", "predict"):
    main([command, "--help"])
print(*{"torch", "lightning", "torchvision", "jsonargparse"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stderr


def test_the_page_is_short() -> None:
    for command in TRAINING:
        text = page(command).format_help()
        assert len(text.splitlines()) < 100
        assert "known subclasses" not in text
