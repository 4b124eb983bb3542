"""Pause Python's garbage collector where it would only walk over objects that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(paused: bool = True) -> Iterator[None]:
    """Pause the garbage collector while thousands of small, lasting objects are made.

    Do not use it around many passes on real tensors: cycles of objects could hold these.

    Args:
        paused: False: leave the collector as it is.
    """
    enabled = gc.isenabled()
    if paused:
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
