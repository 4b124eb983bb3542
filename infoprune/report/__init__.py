"""What a person sees after a run: records, tables, the HTML report and what loggers receive.

Tables, page and charts are pure functions of a `RunRecord`; `collect` makes its rows, `loggers` alone knows Lightning.
"""

from __future__ import annotations

from infoprune.report.html import render_html
from infoprune.report.record import EventRecord, LayerRow, RunRecord, Totals
from infoprune.report.table import print_tables
from infoprune.report.text import summary

__all__ = ["EventRecord", "LayerRow", "RunRecord", "Totals", "print_tables", "render_html", "summary"]
