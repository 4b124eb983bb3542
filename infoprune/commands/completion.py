"""``infoprune completion``: completion of commands, options and known names for the shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune.commands.known_names import ALLOCATIONS, CRITERIA
from infoprune.commands.parser import make_parser, parse
from infoprune.errors import ConfigurationError

WHAT = """\
Print a script that completes commands, options, files and the names of criteria and allocations. It is made once and
costs nothing at the prompt: no Python runs when you press Tab. Needs pip install 'infoprune[completion]'."""

EXAMPLES = """\
  infoprune completion bash > ~/.local/share/bash-completion/completions/infoprune
  infoprune completion zsh > ~/.zfunc/_infoprune        # with fpath+=~/.zfunc before compinit in ~/.zshrc
  infoprune completion tcsh > ~/.infoprune.tcsh         # and source it in ~/.tcshrc"""

SHELLS = ("bash", "zsh", "tcsh")

FILES = ("--config", "--ckpt_path", "--model", "--weights", "--out", "--run", "--plot")
"""Options whose values are files or folders (``--model`` may be one)."""


def make(words: Sequence[str] = ()) -> Any:
    """Return the command's parser."""
    parser = make_parser("completion", WHAT, EXAMPLES)
    parser.add_argument("shell", type=str, help="bash, zsh or tcsh")
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    shell = parse(make(words), words).shell
    if shell not in SHELLS:
        raise ConfigurationError(f"there is no completion for {shell!r}: give one of {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError as error:
        raise ConfigurationError("completion needs shtab: pip install 'infoprune[completion]'") from error
    from infoprune.cli import TOOLS
    from infoprune.commands.training import parsers

    whole = argparse.ArgumentParser(prog="infoprune", description="structural pruning inside a Lightning fit")
    commands = whole.add_subparsers()
    tools = {name: importlib.import_module(f"infoprune.commands.{name}").make() for name in TOOLS}
    for name, parser in {**parsers(), **tools}.items():
        teach(parser, shtab.FILE)
        commands.choices[name] = parser
        commands._choices_actions.append(commands._ChoicesPseudoAction(name, (), parser.description))
    print(shtab.complete(whole, shell))


def teach(parser: argparse.ArgumentParser, files: Mapping[str, Any]) -> None:
    """Mark the options that take files, and give those that take a criterion or an allocation their names.

    The parser is for completion only: parsing with it would allow no other values.
    """
    names = {"--criterion": CRITERIA, "--criteria": CRITERIA, "--allocation": ALLOCATIONS}
    for action in parser._actions:
        for option in action.option_strings:
            if option in FILES:
                action.complete = files  # type: ignore[attr-defined]
            if option in names:
                action.choices = names[option]
        if action.dest == "shell":
            action.choices = SHELLS
