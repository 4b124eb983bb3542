"""Processes of their own that need not import PyTorch and Lightning again: a server imports both once and forks.

Importing Lightning takes some ten seconds of processor time, more than most of what the tests do in other processes.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch
import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning"])
"""Starts processes as `multiprocessing` does, by the server."""


def fork_server() -> None:
    """Start the server as a fork of this process, which imports Lightning anyway: the server need not.

    Call it before anything of infoprune is imported: the server's processes begin with what this one has imported.
    """
    if sys.platform == "linux":
        import lightning  # noqa: F401

        resource_tracker.ensure_running()
        with mock.patch.object(util, "spawnv_passfds", _fork):
            forkserver.ensure_running()


def python(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run what ``python WORDS...`` would: a file, ``-m MODULE`` or ``-c CODE``, each with its arguments.

    Args:
        env: all environment variables; default: this process's.
        cwd: the folder to run in; default: this process's.
        timeout: seconds after which the process is ended and `subprocess.TimeoutExpired` raised.
    """
    (done,) = together([[str(word) for word in words]], [dict(os.environ if env is None else env)], cwd, timeout)
    return done


def together(
    commands: Sequence[Sequence[str]], envs: Sequence[Mapping[str, str]], cwd: Path | None = None, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run several at the same time, and wait for all; see `python`."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [[Path(folder) / f"{number}.{kind}" for kind in ("out", "err")] for number in range(len(commands))]
        processes: list[BaseProcess] = [
            CONTEXT.Process(target=_run, args=(list(words), dict(env), str(cwd or Path.cwd()), *map(str, out)))
            for words, env, out in zip(commands, envs, outs, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        if late := [process for process in processes if process.is_alive()]:
            for process in late:
                process.kill()
            raise subprocess.TimeoutExpired(list(commands[0]), timeout)
        return [
            subprocess.CompletedProcess(list(words), process.exitcode or 0, *(path.read_text() for path in out))
            for words, process, out in zip(commands, processes, outs, strict=True)
        ]


def spawn(work: Callable[..., None], *arguments: object) -> None:
    """Call ``work(rank, *arguments)`` in two processes, as `torch.multiprocessing.spawn` does."""
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")  # type: ignore[no-untyped-call]


def _fork(executable: bytes, words: Sequence[str], inherited: Sequence[int]) -> int:
    """Run ``executable -c CODE``, whose code comes last in the words, in a fork of this process; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist's thread, which the fork does not use
        if process := os.fork():
            return process
    try:
        faulthandler.disable()  # it writes into a file of pytest
        first = 3
        for kept in (*sorted(inherited), os.sysconf("SC_OPEN_MAX")):
            os.closerange(first, kept)
            first = kept + 1
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        gc.freeze()
        gc.enable()
        exec(words[-1], {})
    finally:
        os._exit(0)


def _run(words: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Become the process that was asked for."""
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    kind, *rest = words
    first = "" if kind in ("-m", "-c") else str(Path(kind).resolve().parent)
    paths = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [first, *paths, *(path for path in sys.path if path not in (first, "", *paths))]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")
