"""Named parts: turn ``"l1"`` or ``{"name": "l1", ...}`` from a config file into an object, or say what was meant.

A registered class is a dataclass whose fields are its options, so that a part needs no code of its own to be
configured, checked and written into a run record.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
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
        """Make the decorated class available under ``name``."""

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
            spec: A registered name, the import path of a class (``"my_project.Peak"``), a mapping of ``name`` and
                options or of ``class_path`` and ``init_args``, or a finished object, which is returned as it is.

        Raises:
            ConfigurationError: unknown name, class or option; the message gives the nearest known one.
        """
        if isinstance(spec, self.base):
            return spec
        name, options = self._name_and_options(spec)
        cls = self._find(name)
        known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        accepted = inspect.signature(cls).parameters  # old names of options too
        for option in options:
            if option not in accepted:
                raise ConfigurationError(
                    f"{self.kind} {name!r} has no option {option!r}{nearest(option, known)} "
                    f"(its options: {', '.join(sorted(known)) or 'none'})"
                )
        return cls(**options)

    def _name_and_options(self, spec: Any) -> tuple[str, dict[str, Any]]:
        """Split a description into the name (or import path) of a class and its options."""
        if isinstance(spec, str):
            return spec, {}
        if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
            return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
        if isinstance(spec, Mapping) and isinstance(spec.get("class_path"), str):
            return spec["class_path"], dict(spec.get("init_args") or {})
        raise ConfigurationError(
            f"a {self.kind} is given as a name, an import path, a mapping with a 'name' or a 'class_path', or a "
            f"{self.base.__name__}; got {spec!r}"
        )

    def _find(self, name: str) -> type[T]:
        if name not in self._classes:
            self._load_entry_points()
        if name in self._classes:
            return self._classes[name]
        if "." in name:
            return self._import(name)
        raise ConfigurationError(
            f"unknown {self.kind} {name!r}{nearest(name, self.names)} (known: {', '.join(self.names)}); "
            f"your own {self.kind} is given by its import path, as in my_project.MyClass"
        )

    def _load_entry_points(self) -> None:
        """Import the parts that installed packages offer under the entry points ``infoprune.<kind>``."""
        for entry in importlib.metadata.entry_points(group=f"infoprune.{self.kind}"):
            if entry.name not in self._classes:
                self._classes[entry.name] = self._checked(entry.load(), f"entry point {entry.value}")

    def _import(self, path: str) -> type[T]:
        module, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"{self.kind} {path!r} cannot be imported: {error}") from error
        return self._checked(found, path)

    def _checked(self, found: Any, path: str) -> type[T]:
        if not isinstance(found, type) or not issubclass(found, self.base):
            raise ConfigurationError(f"{path} is no {self.kind}: it does not derive from {self.base.__name__}")
        return found


def check_choice(caller: str, option: str, value: object, known: Collection[str]) -> None:
    """Raise a ConfigurationError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigurationError(
            f"{caller}: {option} cannot be {value!r}{nearest(str(value), known)} (choose from {', '.join(known)})"
        )


def check_number(caller: str, option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise a ConfigurationError unless ``value`` is a number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        upper = f" and at most {high:g}" if high != float("inf") else ""
        raise ConfigurationError(f"{caller}: {option} must be a number of at least {low:g}{upper}, got {value!r}")


def check_count(caller: str, option: str, value: int, low: int) -> None:
    """Raise a ConfigurationError unless ``value`` is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{caller}: {option} must be a whole number of at least {low}, got {value!r}")
