"""Writing files wholly or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new empty file beside ``path`` that takes its place in the end; after an error nothing has changed.

    The new file has a name of its own, so any number of processes may write to one path. A symbolic link at ``path``
    is replaced, never followed.

    Raises:
        OSError: ``path`` cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(f"{folder}/words.txt") as scratch:
    ...         _ = scratch.write_text("all of it")
    ...     print(os.listdir(folder), Path(folder, "words.txt").read_text())
    ['words.txt'] all of it
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is a device or a pipe, which a file cannot replace")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    scratch = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex}.part"
    try:
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask applies, as for any file
        yield scratch
        os.replace(scratch, target)
    except BaseException:
        with suppress(OSError):  # the folder may be gone; the error that counts is the first
            scratch.unlink(missing_ok=True)
        raise


def write_text_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, wholly or not at all.

    Args:
        path: of the file, replaced if it exists.
        text: all that it holds.

    Raises:
        OSError: ``path`` cannot be written.
    """
    with written_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
