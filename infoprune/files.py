"""Writing files wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file to write to, beside ``path``, that takes its place in the end; after an error nothing has changed.

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
    scratch = target.parent / f".{target.name}.part"
    try:
        yield scratch
        os.replace(scratch, target)
    except BaseException:
        if scratch.is_file():
            scratch.unlink()
        raise
