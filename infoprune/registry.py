"""Registries: make an object from ``"l1"`` or ``{"name": "l1", ...}``, or name the nearest known name.

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

from infoprune.errors import ConfigurationError, InfopruneError, nearest
from infoprune.part import Part

T = TypeVar("T", bound=Part)
Class = TypeVar("Class", bound=type)


class Registry(Generic[T]):
    """Names and the dataclasses behind them.

    Args:
        base: The class that all of them derive from.
    """

    def __init__(self, base: type[T]) -> None:
        self.kind = base.kind
        self.base = base
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Make the decorated class available under ``name``.

        Args:
            name: the name for configurations and the command line.
        """

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
        self._check_options(cls, name, options)
        try:
            return cls(**options)
        except InfopruneError:
            raise
        except Exception as error:  # the constructor of a user's class may fail in any way
            raise ConfigurationError(
                f"{self.kind} {name!r} cannot be made with {options or 'no options'} ({type(error).__name__}: {error})"
            ) from error

    def _check_options(self, cls: type[T], name: str, options: Mapping[str, Any]) -> None:
        """Refuse a class with methods that are still to be written, unknown options, and missing ones."""
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise ConfigurationError(f"{self.kind} {name!r} is not complete: {cls.__name__} does not define {missing}")
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        accepted = inspect.signature(cls).parameters  # old names of options too
        for option in options:
            if option not in accepted:
                undecorated = option in vars(cls).get("__annotations__", {})
                advice = f"; put @dataclass(kw_only=True) above class {cls.__name__}" if undecorated else ""
                raise ConfigurationError(
                    f"{self.kind} {name!r} has no option {option!r}{nearest(option, known)} "
                    f"(its options: {', '.join(sorted(known)) or 'none'}){advice}"
                )
        for option, parameter in accepted.items():
            has_value = parameter.default is not parameter.empty or parameter.kind in _OPEN_ENDED
            if option not in options and not has_value:
                raise ConfigurationError(
                    f"{self.kind} {name!r} needs its option {option!r}: give {{name: {name}, {option}: ...}}"
                )

    def _name_and_options(self, spec: Any) -> tuple[str, dict[str, Any]]:
        """Split a description into the name (or import path) of a class and its options."""
        if isinstance(spec, str):
            return spec, {}
        if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
            return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
        if isinstance(spec, Mapping) and isinstance(spec.get("class_path"), str):
            options = spec.get("init_args") or {}
            if not isinstance(options, Mapping):
                raise ConfigurationError(f"the init_args of {spec['class_path']} must be a mapping, got {options!r}")
            return spec["class_path"], dict(options)
        advice = f"; give {spec.__name__}() instead of the class" if isinstance(spec, type) else ""
        raise ConfigurationError(
            f"a {self.kind} is given as a name, an import path, a mapping with a 'name' or a 'class_path', or a "
            f"{self.base.__name__}; got {spec!r}{advice}"
        )

    def _find(self, name: str) -> type[T]:
        if name in self._classes:
            return self._classes[name]
        offered = {entry.name: entry for entry in importlib.metadata.entry_points(group=f"infoprune.{self.kind}")}
        if name in offered:
            found = self._load(offered[name].load, f"{offered[name].value!r} (entry point {name!r})")
            return found if found.name else self.register(name)(found)
        if "." in name:
            module, _, attribute = name.rpartition(".")
            return self._load(lambda: getattr(importlib.import_module(module), attribute), repr(name))
        known = sorted({*self.names, *offered})
        raise ConfigurationError(
            f"unknown {self.kind} {name!r}{nearest(name, known)} (known: {', '.join(known)}); "
            f"your own {self.kind} is given by its import path, as in my_project.MyClass"
        )

    def _load(self, load: Callable[[], Any], path: str) -> type[T]:
        """Import a user's class, and check that it is a part of this kind."""
        try:
            found = load()
        except Exception as error:  # the user's module may fail in any way while it is imported
            raise ConfigurationError(
                f"{self.kind} {path} cannot be imported ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(found, type) or not issubclass(found, self.base):
            raise ConfigurationError(f"{path} is no {self.kind}: it does not derive from {self.base.__name__}")
        return found


_OPEN_ENDED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Parameters that need no value: ``*args`` and ``**kwargs``."""


def check_choice(caller: str, option: str, value: object, known: Collection[str]) -> None:
    """Refuse a value that is none of the known ones.

    Args:
        caller: class or function with the option, for messages.
        option: name of the option.
        value: its value.
        known: the allowed values.
    """
    if value not in known:
        raise ConfigurationError(
            f"{caller}: {option} cannot be {value!r}{nearest(str(value), known)} (choose from {', '.join(known)})"
        )


def check_number(caller: str, option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse a value that is no number in ``[low, high]``.

    Args:
        caller: class or function with the option, for messages.
        option: name of the option.
        value: its value.
        low: the smallest allowed value.
        high: the largest allowed value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        upper = f" and at most {high:g}" if high != float("inf") else ""
        raise ConfigurationError(f"{caller}: {option} must be a number of at least {low:g}{upper}, got {value!r}")


def check_count(caller: str, option: str, value: int, low: int) -> None:
    """Refuse a value that is no whole number of at least ``low``.

    Args:
        caller: class or function with the option, for messages.
        option: name of the option.
        value: its value.
        low: the smallest allowed value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{caller}: {option} must be a whole number of at least {low}, got {value!r}")
