"""The closing table of a run on the console: every layer and the whole model, before -> after."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infoprune.report.record import LayerRow, RunRecord
from infoprune.report.text import count, percent, summary, total_rows


def print_tables(record: RunRecord, console: Console | None = None) -> None:
    """Print what was done in three sentences, the layers' table and the totals.

    Args:
        record: the run.
        console: where to; by default a console on standard output.
    """
    console = console or Console(soft_wrap=False)
    if record.layers:
        console.print(layer_table(record))
    console.print(totals_table(record))
    console.print(Text(" ".join(summary(record))))
    for warning in record.warnings:
        console.print(Text(f"Note: {warning}", style="yellow"))


def tables_as_text(record: RunRecord, width: int = 100) -> str:
    """Return what `print_tables` prints, without colours, for a log.

    Args:
        record: the record of the run.
        width: columns of the text.
    """
    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        print_tables(record, console)
    return capture.get().rstrip()


def layer_table(record: RunRecord) -> Table:
    """Return one row a layer: channels, parameters and MACs, before -> after; layers that lost nothing are dim."""
    table = Table(
        title="Layers", title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    table.add_column("layer", overflow="fold")
    for column in ("channels", "parameters", "MACs", "MACs kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in record.layers:
        untouched = row.channels_before == row.channels_after and row.macs_before == row.macs_after
        table.add_row(
            Text(row.name),
            pair(str(row.channels_before), str(row.channels_after)),
            pair(count(row.params_before), count(row.params_after)),
            pair(count(row.macs_before), count(row.macs_after)),
            percent(_kept(row), 0),
            style="dim" if untouched else None,
        )
    return table


def totals_table(record: RunRecord) -> Table:
    """Return the whole model's row for filters, parameters, MACs, latency and each metric, before -> after."""
    table = Table(
        title="In total", title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    for what, before, after, shift in total_rows(record):
        style = "bold" if what == record.metric else None
        table.add_row(Text(what), before, after, shift, style=style)
    return table


def _kept(row: LayerRow) -> float:
    return row.macs_after / row.macs_before if row.macs_before else 1.0


def pair(before: str, after: str) -> str:
    """Return the text of a cell: before -> after, or a single value if both are the same.

    Args:
        before: the text of the value before.
        after: the text of the value after.
    """
    return before if before == after else f"{before} → {after}"


__all__ = ["layer_table", "pair", "print_tables", "tables_as_text", "totals_table"]
