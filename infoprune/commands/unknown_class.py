"""Refuse a misspelt class of a training command before PyTorch and Lightning are imported, which takes seconds."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from infoprune.commands.known_names import DATA, MODULES
from infoprune.commands.model_names import ENTRY_POINTS
from infoprune.commands.parser_errors import no_such_class
from infoprune.errors import ConfigurationError, nearest

_IMPORT_PATH = r"\b([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)+"

_OURS = {"infoprune", "lightning", "torch", "torchvision"}
"""Packages whose import brings no class of the user."""


def check_class_names(words: Sequence[str]) -> None:
    """Refuse a ``--model`` or ``--data`` that is nearly the name of a class of this package.

    A short name may also mean a class of the user, if something else on the command line or in a configuration imports
    its module. Then nothing is refused here: the parser decides.

    Args:
        words: the command line.

    Raises:
        ConfigurationError: names the option and the class that was probably meant.

    Example:
        >>> check_class_names(["fit", "--model", "ImageClasifier"])
        Traceback (most recent call last):
        infoprune.errors.ConfigurationError: --model: no class is called 'ImageClasifier', did you mean ...
        >>> check_class_names(["fit", "--model", "MyImageClassifier", "--data", "my_package.MyData"])
    """
    given = [pair for pair in pairwise(_parts(words)) if pair[0].startswith("-")]
    for option, known in (("--model", MODULES), ("--data", DATA)):
        for name in (value for key, value in given if key == option):
            if name not in known and nearest(name, known) and not _may_be_the_users(name, given):
                raise ConfigurationError(no_such_class(option, name, known))


def _parts(words: Sequence[str]) -> Iterator[str]:
    """Yield options and values apart, as in ``--model=x``."""
    for word in words:
        option, equals, value = word.partition("=")
        yield from (option, value) if equals and option.startswith("-") else (word,)


def _may_be_the_users(name: str, given: list[tuple[str, str]]) -> bool:
    """Return whether a name can mean a file, a network of another package, or a class that an import would bring."""
    if not name.isidentifier() or Path(name).exists():
        return True
    if any(entry.name == name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)):
        return True
    files = [Path(value) for key, value in given if key in ("-c", "--config")]
    if not all(file.is_file() for file in files):
        return True
    texts = [value for key, value in given if key not in ("-c", "--config")]
    texts += [re.sub("#.*", "", file.read_text(encoding="utf-8", errors="replace")) for file in files]
    return any(set(re.findall(_IMPORT_PATH, text)) - _OURS for text in texts)
