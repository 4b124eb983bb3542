"""Small HTML tables that notebooks show for plans, structures and results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a title; all texts are escaped.

    Args:
        title: the caption.
        columns: the headings.
        rows: one text a column.

    Example:
        >>> html_table("Two", ["a", "b"], [["1", "<2>"]])
        '<table><caption>Two</caption><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>&lt;2&gt;</td></tr></table>'
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"
