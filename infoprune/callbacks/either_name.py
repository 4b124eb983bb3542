"""Lightning under both its names, ``lightning.pytorch`` and ``pytorch_lightning``, which do not mix."""

from __future__ import annotations

import functools
import sys
from typing import Any

import lightning.pytorch as pl
from typing_extensions import Self


class EitherName(pl.Callback):
    """A callback for projects written against either package.

    Where ``pytorch_lightning`` has been imported by the time that a callback is made, the callback is one of that
    package too. Otherwise it is left alone: importing it takes seconds.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Make an instance that is at home in all packages in use."""
        mirror = sys.modules.get("pytorch_lightning")
        kind: Any = cls
        return super().__new__(kind if mirror is None else _at_home_in(mirror.Callback, kind))

    def __reduce_ex__(self, protocol: Any) -> Any:
        home = next(cls for cls in type(self).__mro__ if not cls.__dict__.get(_MADE_HERE))
        return _remake, (home,), self.__dict__


_MADE_HERE = "_infoprune_made_here"


@functools.cache
def _at_home_in(other: type, cls: type) -> Any:
    if issubclass(cls, other):
        return cls
    # A private module, so that a command line that looks classes up by name finds only the original.
    private = f"{cls.__module__}._at_home"
    return type(cls.__name__, (cls, other), {"__module__": private, "__doc__": cls.__doc__, _MADE_HERE: True})


def _remake(cls: type[EitherName]) -> EitherName:
    return cls.__new__(cls)
