"""Turn a parser's report of many lines into one: the option, its value, and the nearest known name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator

from infoprune.commands.model_names import network_names
from infoprune.errors import nearest

_CLASS = r"Problem with given class_path '([\w.]+)'"

_ANY_CALLBACK = r"- Problem with given class_path 'lightning\.Callback':\s+Option '\w+' is not accepted\s*"
"""What is said besides about a wrong option of a callback, since one callback is accepted as well as a list."""

_TYPE = r"Expected a <class '(?!NoneType)([\w.]+)'>"

_NESTED = r"Given value: NestedArg\(key='([\w.]+)', val=(.*)\)"
"""How jsonargparse shows the value of one option of a class, as in ``--model.width 8``."""


def in_one_line(text: str, options: Iterable[str] = ()) -> str:
    r"""Return an error of jsonargparse in one line, with the nearest known name.

    Args:
        text: what the parser reports.
        options: the options of the parser, for misspelt ones.

    Example:
        >>> in_one_line('Parser key "config": File does not exist: \'my.yaml\'')
        "--config: there is no file 'my.yaml'"
        >>> in_one_line("unrecognized arguments: --maccs 0.5", ["--macs", "--params"])
        "unrecognized arguments: --maccs 0.5, did you mean '--macs'?"
    """
    options, text = list(options), re.sub(_ANY_CALLBACK, "", text)
    missing = _missing(text, takes_config="--config" in options)
    if missing:
        return missing
    key = re.search(r'Parser key "([\w.+]+)"', text)
    option = f"--{key[1]}" if key else ""
    for say in (_no_class_given, _unknown_option, _no_file, _no_class, _wrong_class, _wrong_choice, _wrong_type):
        said = say(text, option)
        if said:
            return said.removeprefix(": ")
    said = " ".join(text.split()).removeprefix("error: ")
    about_config = re.match(r"(?:Problems parsing|Unexpected) config: (.*)", said)
    if about_config:
        return f"--config: not a file of options: {about_config[1]}"
    in_config = re.match(r"Subcommand '(\w+)' does not accept option '([\w.]+)'", said)
    if in_config:
        return f"--config: {in_config[1]} has no option {in_config[2]!r}{nearest(in_config[2], _bare(options))}"
    return said + _meant(said, options)


def _meant(said: str, options: list[str]) -> str:
    """Return a hint for a word that no option takes."""
    unknown = re.search(r"unrecognized arguments: (\S+)", said, re.IGNORECASE)
    if not unknown:
        return ""
    if not unknown[1].startswith("-"):
        return "; every value follows its option, and --help lists the options"
    return nearest(unknown[1].partition("=")[0].lstrip("-"), _bare(options)).replace("mean '", "mean '--")


def _bare(options: list[str]) -> list[str]:
    """Return options without dashes, which would make all short options alike."""
    return [option.lstrip("-") for option in options]


def _no_class_given(text: str, option: str) -> str | None:
    """Say that an option of a class is given and the class is not."""
    nested = re.search(_NESTED, text)
    if not nested or nested[1] in ("class_path", "init_args"):
        return None
    cls = _class_before(text, len(text))
    if cls and _short(cls) not in ("LightningModule", "LightningDataModule"):
        return None
    return f"{option}.{nested[1]}: name the class first, as in {option} MyClass {option}.{nested[1]} ..."


def _unknown_option(text: str, option: str) -> str | None:
    """Name the class whose option does not exist; the first that is reported is the one that was meant."""
    found = re.search(r"Option '(\w+)' is not accepted", text)
    if not found:
        return None
    cls = _class_before(text, found.start())
    known = _parameters(cls)
    return f"{option}: {_short(cls)} has no option {found[1]!r}{nearest(found[1], known)}{_known(known)}"


def _missing(text: str, takes_config: bool) -> str | None:
    found = re.search(r"the following arguments are required: ([\w., ]+)", text)
    if not found:
        return None
    names = [name.strip() for name in found[1].split(",")]
    cls, key = _class_before(text, found.start()), re.search(r'Parser key "([\w.+]+)"', text)
    if cls and key:
        option = f"--{key[1]}"
        return f"{option}: {_short(cls)} needs {' and '.join(f'{option}.{name}' for name in names)}"
    options = [f"--{name.rpartition('.')[2]}" for name in names]
    return f"missing: {' and '.join(options)}" + ("; give it here or in a --config" if takes_config else "")


def _no_file(text: str, option: str) -> str | None:
    found = re.search(r"File does not exist: '(.+?)'", text)
    return f"{option}: there is no file {found[1]!r}" if found else None


def _no_class(text: str, option: str) -> str | None:
    found = re.search(r"Expected a dot import path string: (\S+)|Unexpected import path format: (\S+)", text)
    if not found or re.search(_TYPE, text[: found.start()]):  # a class is only one of several types
        return None
    name = found[1] or found[2]
    known = {*_class_names(), *(network_names() if option in ("--model", "--model.model") else ())}
    return no_such_class(option, name, known)


def no_such_class(option: str, name: str, known: Iterable[str]) -> str:
    """Return what is said about a short name that no class has.

    Args:
        option: that it was given for.
        name: the short name.
        known: names of classes.
    """
    return (
        f"{option}: no class is called {name!r}{nearest(name, known)}; give a known name or an import path, as in "
        "my_project.MyClass"
    )


def _wrong_class(text: str, option: str) -> str | None:
    found = re.search(r"Import path (?:([\w.]+) )?does not correspond to a subclass of (\w+)", text)
    if found:
        name = found[1] or _given(text)
        return (
            f"{option}: {name} is no class that derives from {found[2]}, nor a function annotated to return one "
            f"(def {_short(name)}(...) -> {found[2]})"
        )
    absent = re.search(rf"{_CLASS}:\s+(module '(\S+)' has no attribute '(\S+)'|No module named \S+)", text)
    if not absent:
        return None
    hint = nearest(absent[4], dir(importlib.import_module(absent[3]))) if absent[3] else ""
    return f"{option}: {absent[1]} cannot be imported: {absent[2]}{hint}"


def _wrong_choice(text: str, option: str) -> str | None:
    found = re.findall(r"Expected a typing\.Literal\[(.*)\]|Expected a member of <enum '\w+'>: {(.*)}", text)
    if not found or re.search(_TYPE, text):
        return None
    choices = dict.fromkeys(re.findall(r"[\w.-]+", " ".join(a or b for a, b in found)))
    given = _given(text)
    return f"{option}: {given!r} is none of {', '.join(choices)}{nearest(given, choices)}"


def _wrong_type(text: str, option: str) -> str | None:
    expected = re.search(_TYPE, text)
    given = _given(text)
    if not expected or not given:
        return None
    inner = re.findall(r'Parser key "([\w.]+)"', text[: expected.start()])
    cls = _class_before(text, expected.start())
    where = f"{option}: {_short(cls)} option {inner[-1]!r}" if cls and len(inner) > 1 else option
    types = dict.fromkeys(name.rpartition(".")[2] for name in re.findall(_TYPE, text))
    return f"{where}: expected {' or '.join(types)}, got {given!r}"


def _given(text: str) -> str:
    """Return the value that a report is about, or nothing."""
    found = re.search(_NESTED, text)
    if found:
        return found[2].strip("'")
    found = re.search(r"(?:Given|Got) value: (.*)", text)
    return found[1] if found else ""


def _class_before(text: str, end: int) -> str:
    """Return the path of the innermost class that the report is about at some place, or nothing."""
    found = re.findall(_CLASS, text[:end])
    return str(found[-1]) if found else ""


def _short(cls: str) -> str:
    return cls.rpartition(".")[2] or "it"


def _known(names: Iterable[str]) -> str:
    names = sorted(names)
    return f" (its options: {', '.join(names)})" if names else ""


def _parameters(cls: str) -> list[str]:
    module, _, name = cls.rpartition(".")
    found = getattr(importlib.import_module(module), name, None) if module else None
    return list(inspect.signature(found).parameters) if callable(found) else []


def _class_names() -> Iterator[str]:
    """Yield the short names that the command line knows: of callbacks, loggers, models and data that are imported."""
    import lightning as L
    from lightning.pytorch.loggers import Logger

    waiting: list[type] = [L.Callback, Logger, L.LightningModule, L.LightningDataModule]
    while waiting:
        cls = waiting.pop()
        yield cls.__name__
        waiting += cls.__subclasses__()
