"""Shared parts of the commands: parsers, errors in one line, output as tables or JSON."""

from __future__ import annotations

import json
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console

from infoprune.commands.parser_errors import in_one_line
from infoprune.errors import ConfigurationError
from infoprune.version import __version__

FORMAT = 1
"""Number of the layout of what ``--json`` prints; raised whenever a key changes its meaning or goes."""


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with defaults and types, and examples with their line breaks."""


def make_parser(command: str, what: str, examples: str) -> ArgumentParser:
    """Return the parser of a command.

    Args:
        command: its name.
        what: what it does, in a few lines.
        examples: command lines that work.
    """
    return ArgumentParser(
        prog=f"infoprune {command}",
        description=what,
        epilog=f"examples:\n{examples}",
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,  # --mac 0.5 would be taken for one of --macs and --max_drop
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse a command line; mistakes become a ConfigurationError in one line, with the nearest option's name.

    Args:
        parser: of the command.
        words: the command line behind the name of the command.
    """
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigurationError(in_one_line(str(error), known)) from error


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder to write into that cannot be made, because it or a folder above it is a file.

    Args:
        option: the option that names the folder, for messages.
        folder: the folder.

    Raises:
        ConfigurationError: names the option and the file.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not there.is_dir():
        raise ConfigurationError(f"{option} {folder}: {there} is a file, not a folder: name another folder")


def instantiate(parser: ArgumentParser, options: Namespace) -> Namespace:
    """Make the objects that options describe by ``class_path``.

    Args:
        parser: of the command.
        options: the parsed options.
    """
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name since jsonargparse 4.49
    made: Namespace = make(options)
    return made


def add_json_argument(parser: ArgumentParser) -> None:
    """Add ``--json``.

    Args:
        parser: of the command.
    """
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def show(command: str, data: dict[str, Any], as_json: bool, tables: Callable[[Console], None]) -> None:
    """Print a result for a machine or for a person.

    Args:
        command: what made it.
        data: primitives only.
        as_json: whether to print ``data``.
        tables: prints the same for a person.
    """
    if as_json:
        head = {"command": command, "format": FORMAT, "infoprune": __version__}
        print(json.dumps({**head, **data}, indent=1, allow_nan=False))
    else:
        tables(Console(soft_wrap=False))
