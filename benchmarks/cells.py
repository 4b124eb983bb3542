"""Lines of results in a file, one for each thing measured, so that a benchmark can run in slices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Cells:
    """Rows in a JSON Lines file, by what they were measured for.

    Args:
        path: the file; it need not be there yet.
        fields: the fields of a row that say what it was measured for.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self._path = path
        self._fields = fields

    def read(self) -> dict[tuple[Any, ...], Row]:
        """Return what was measured before, by what it was measured for."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        return {self._cell(row): row for row in map(json.loads, text.splitlines())}

    def keep(self, row: Row) -> None:
        """Write a row in the place of an older one of the same cell; other slices may have added theirs."""
        rows = self.read() | {self._cell(row): row}
        self._path.write_text("".join(f"{json.dumps(one)}\n" for one in rows.values()), encoding="utf-8")

    def _cell(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._fields)
