"""What a person sees after a run: records, tables, the HTML report and what loggers receive.

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
    """Import the page when it is asked for: its template engine takes as long to import as all the rest."""
    if name == "render_html":
        from infoprune.report.html import render_html

        return render_html
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
