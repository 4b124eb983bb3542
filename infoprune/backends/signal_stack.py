"""The stack on which the handlers of signals run, which OpenVINO replaces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore on exit the signal stack that this thread has on entry.

    Every CPU plugin of OpenVINO maps a signal stack of its own for the thread that loads it, and on its end restores
    the stack that it found. If two plugins live at the same time, the second restores the stack of the first, which is
    no longer mapped; the next signal then ends the process with a segmentation fault. With workers of a DataLoader,
    which install a handler for SIGCHLD, the end of any child process is such a signal. A plugin that finds another
    stack than its own on its end leaves it alone, so the stack has only to be put back once the plugin is loaded.
    """
    if sys.platform != "linux":  # elsewhere OpenVINO replaces no stack
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
