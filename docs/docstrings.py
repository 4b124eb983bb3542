"""Makes code blocks of the docstrings' doctests: of ``Example:`` sections, and of those without any section."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

BARE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts doctests where griffe's Google style expects them, under ``Examples:``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = BARE.sub(lambda match: "Examples:\n" + textwrap.indent(match[0], "    "), text)
