"""What MkDocs does not do by itself: formulas without JavaScript, and the roles that docstrings use."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw themselves, and ``:class:`X``` into plain code."""
    content = FORMULA.sub(_mathml, content)
    return ROLE.sub(lambda match: f"<code>{match[1]}</code>", content)


def _mathml(match: re.Match[str]) -> str:
    return str(convert(html.unescape(match[3]).strip(), display="inline" if match[2] == "(" else "block"))
