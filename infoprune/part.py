"""What criteria, allocations and backends have in common: a name, options, and errors that say which part failed."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from infoprune.errors import ConfigurationError, InfopruneError

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""What faulty code raises."""


@dataclasses.dataclass(kw_only=True)
class Part(ABC):
    """A part of a pruning decision that users may write themselves: a dataclass whose fields are its options."""

    kind: ClassVar[str]
    """What it is called in messages, and the registry that knows it: ``"criterion"``, say."""
    name: ClassVar[str] = ""
    """The registered name; empty for a class that is not registered, whatever it derives from."""

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", "")

    @property
    def short_name(self) -> str:
        """Return the registered name, or the name of the class where it is not registered."""
        return self.name or type(self).__name__

    @property
    def label(self) -> str:
        """Return how messages refer to this part."""
        return f"{self.kind} {self.short_name!r}"

    @property
    def options(self) -> dict[str, Any]:
        """Return the options by name, as a run record keeps them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    @contextmanager
    def named_in_errors(self, task: str) -> Iterator[None]:
        """Turn a fault in the code of this part into an error that names the part.

        What tells of the machine (``OSError``, ``RuntimeError``, no memory) passes unchanged: nothing is wrong with the
        code, and callers may know what to do about it.

        Args:
            task: What the code does inside: ``"scoring layer 'conv1'"``.

        Raises:
            ConfigurationError: from one of `FAULTS`.
        """
        try:
            yield
        except InfopruneError:
            raise
        except FAULTS as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ConfigurationError(f"{self.label} failed {task} ({reason})") from error
