"""Named parts: turn ``"l1"`` or ``{"name": "l1", ...}`` from a config file into an object, or say what was meant.

A registered class is a dataclass whose fields are its options, so that a part needs no code of its own to be
configured, checked and written into a run record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from infoprune.errors import ConfigurationError, nearest

T = TypeVar("T")
Class = TypeVar("Class", bound=type)


class Registry(Generic[T]):
    """Names and the dataclasses behind them.

    Args:
        kind: What the registered parts are, for messages: ``"criterion"``.
        base: The class that all of them derive from.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator: make the class available under ``name``."""

        def add(cls: Class) -> Class:
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return add

    @property
    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self._classes))

    def build(self, spec: str | Mapping[str, Any] | T) -> T:
        """Return the part that ``spec`` describes.

        Args:
            spec: A name, a mapping of ``name`` and options, or a finished object, which is returned as it is.

        Raises:
            ConfigurationError: unknown name or option; the message gives the nearest known one.
        """
        if isinstance(spec, self.base):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigurationError(
                f"a {self.kind} is given as a name, a mapping with a 'name', or a {self.base.__name__}; got {spec!r}"
            )
        options = {str(key): value for key, value in spec.items() if key != "name"}
        cls = self._find(spec["name"])
        known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        for option in options:
            if option not in known:
                raise ConfigurationError(
                    f"{self.kind} {spec['name']!r} has no option {option!r}{nearest(option, known)} "
                    f"(its options: {', '.join(sorted(known)) or 'none'})"
                )
        return cls(**options)

    def _find(self, name: str) -> type[T]:
        if name not in self._classes:
            raise ConfigurationError(
                f"unknown {self.kind} {name!r}{nearest(name, self.names)} (known: {', '.join(self.names)})"
            )
        return self._classes[name]


def check_choice(owner: str, option: str, value: object, known: Collection[str]) -> None:
    """Raise a ConfigurationError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigurationError(
            f"{owner}: {option} cannot be {value!r}{nearest(str(value), known)} (choose from {', '.join(known)})"
        )


def check_number(owner: str, option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise a ConfigurationError unless ``value`` is a number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        upper = f" and at most {high:g}" if high != float("inf") else ""
        raise ConfigurationError(f"{owner}: {option} must be a number of at least {low:g}{upper}, got {value!r}")


def check_count(owner: str, option: str, value: int, low: int) -> None:
    """Raise a ConfigurationError unless ``value`` is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{owner}: {option} must be a whole number of at least {low}, got {value!r}")
