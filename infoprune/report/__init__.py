"""Reports of runs: records, tables, HTML pages and logger output.

Tables, page and charts are pure functions of a `RunRecord`; `collect` makes its rows, `loggers` alone knows Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infoprune.report.record import EventRecord, LayerRow, RunRecord, Totals
from infoprune.report.table import print_tables
from infoprune.report.text import summary

if TYPE_CHECKING:
    from infoprune.report.html import render_html

__all__ = ["EventRecord", "LayerRow", "RunRecord", "Totals", "print_tables", "render_html", "summary"]


def __getattr__(name: str) -> Any:
    """Import the HTML page on first use, since its template engine is slow to import."""
    if name == "render_html":
        from infoprune.report.html import render_html

        return render_html
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
