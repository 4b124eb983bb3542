"""What MkDocs does not do by itself: formulas without JavaScript, roles of docstrings, breaks in names of tests."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
TEST = re.compile(r"<code>(tests/[\w./:]+)</code>")
ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw themselves, and ``:class:`X``` into plain code.

    Names of tests may break behind ``::`` and underscores.
    """
    content = FORMULA.sub(_mathml, content)
    content = TEST.sub(lambda match: re.sub("(::|_)", r"\1<wbr>", match[0]), content)
    return ROLE.sub(lambda match: f"<code>{match[1]}</code>", content)


def _mathml(match: re.Match[str]) -> str:
    return str(convert(html.unescape(match[3]).strip(), display="inline" if match[2] == "(" else "block"))
