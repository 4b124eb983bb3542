"""Lightning under both its names, ``lightning.pytorch`` and ``pytorch_lightning``, which do not mix."""

from __future__ import annotations

import functools
import sys
from typing import Any

import lightning.pytorch as pl
from typing_extensions import Self


class DualNamespaceCallback(pl.Callback):
    """Base of callbacks for projects written against either package.

    If ``pytorch_lightning`` has been imported when a callback is made, the callback is an instance of that package's
    ``Callback`` too. Otherwise ``pytorch_lightning`` is not imported, because that takes seconds.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Make an instance of the callback classes of both packages, where both are in use."""
        mirror = sys.modules.get("pytorch_lightning")
        kind: Any = cls
        return super().__new__(kind if mirror is None else _subclass_of_both(mirror.Callback, kind))

    def __reduce_ex__(self, protocol: Any) -> Any:
        home = next(cls for cls in type(self).__mro__ if not cls.__dict__.get(_GENERATED))
        return _remake, (home,), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or another process gets; Python before 3.11 has no such method of its own."""
        return dict(vars(self))


_GENERATED = "_infoprune_generated"


@functools.cache
def _subclass_of_both(other: type, cls: type) -> Any:
    if issubclass(cls, other):
        return cls
    # A private module, so that a command line that looks classes up by name finds only the original.
    private = f"{cls.__module__}._both"
    return type(cls.__name__, (cls, other), {"__module__": private, "__doc__": cls.__doc__, _GENERATED: True})


def _remake(cls: type[DualNamespaceCallback]) -> DualNamespaceCallback:
    return cls.__new__(cls)
