"""Networks by short names: torchvision's ``resnet18``, ``timm:resnet50``, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from itertools import pairwise

from infoprune.errors import ConfigurationError, nearest

TIMM = "timm:"

ENTRY_POINTS = "infoprune.model"
"""The group of entry points under which an installed package offers its networks by name."""


def with_full_names(words: Sequence[str], lightning: bool = False) -> list[str]:
    """Return a command line in which the network's name is the path of the function that builds it.

    Args:
        words: the command line.
        lightning: the command trains, so that the network itself becomes the ``model`` of an ``ImageClassifier``, with
            as many classes.

    Raises:
        ConfigurationError: timm is asked for and not installed, or has no model of that name.

    Example:
        >>> with_full_names(["--model", "resnet18", "--json"])
        ['--model', 'torchvision.models.resnet18', '--json']
        >>> with_full_names(["--model=resnet18", "--model.num_classes=10"], lightning=True)[:4]
        ['--model', 'ImageClassifier', '--model.model', 'torchvision.models.resnet18']
    """
    split = [part for word in words for part in _split(word)]
    found: list[str] = []
    classes = next((b for a, b in pairwise(split) if a == "--model.num_classes"), None)
    for option, value in zip(["", *split], split, strict=False):
        network = _network(value) if option in ("--model", "--model.model") else None
        if network is None:
            found.append(value)
            continue
        path, *arguments = network
        prefix = "--model.model" if lightning else option
        if lightning and option == "--model":
            found += ["ImageClassifier", "--model.model"]
        found += [path, *(f"{prefix}.{argument}" for argument in arguments)]
        if lightning and classes is not None:
            found += [f"{prefix}.num_classes", classes]
    return found


def network_names() -> list[str]:
    """Return the names of the networks of this package and of torchvision, as ``--model`` takes them."""
    from torchvision import models

    import infoprune.models

    return [*infoprune.models.__all__, *models.list_models(module=models)]


def _split(word: str) -> list[str]:
    """Split ``--model=x`` into two words, and leave other words unchanged."""
    option, equals, value = word.partition("=")
    return [option, value] if equals and option.startswith("--model") else [word]


def _network(name: str) -> list[str] | None:
    """Return the path of the function that builds a network, and its arguments; None for other names."""
    if name.startswith(TIMM):
        return ["infoprune.models.timm_model", f"name={_known_to_timm(name.removeprefix(TIMM))}"]
    offered = [entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS) if entry.name == name]
    if offered:
        return [offered[-1].value.replace(":", ".")]
    if not name.isidentifier() or not name.islower():  # classes have capitals, paths have dots or slashes
        return None
    from torchvision import models

    known = models.list_models(module=models)
    return [f"torchvision.models.{name}"] if name in known else None


def _known_to_timm(name: str) -> str:
    if importlib.util.find_spec("timm") is None:
        raise ConfigurationError(f"--model {TIMM}{name} needs timm: pip install timm")
    import timm

    if name.partition(".")[0] not in timm.list_models():
        raise ConfigurationError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    return name
