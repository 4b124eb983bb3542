"""Shorten the explanation of a channel group to fit on a page."""

from __future__ import annotations

import re

_PLACE = re.compile(r"  (?P<module>\S+\.)?(?P<tensor>[^.\s]+): (?P<what>.*?)(, through (?P<way>.*))?")


def places(text: str) -> int:
    """Return how many parameters and buffers an explanation names."""
    return sum(_PLACE.fullmatch(line) is not None for line in text.splitlines())


def shortened(text: str, most: int = 60) -> str:
    r"""Keep only the last step for each place, and merge the tensors of one module into one line.

    Args:
        text: what ``Structure.explain`` says of a group.
        most: lines to keep.

    >>> first, second = "  bn.weight: 1 of its entries, through f, then g", "  bn.bias: 1 of its entries, through g"
    >>> print(shortened(f"conv: 4 units. One unit takes from\n{first}\n{second}"))
    conv: 4 units. One unit takes from
      bn.weight, bias: 1 of its entries, through g
    """
    tensors: dict[tuple[str, str], list[str]] = {}
    rests: dict[tuple[str, str], str] = {}
    for number, line in enumerate(text.splitlines()):
        place = _PLACE.fullmatch(line)
        if place is None:
            rests["", str(number)] = line
            continue
        step = (place["way"] or "").rpartition(", then ")[2]
        key = (place["module"] or "", step or place["tensor"])
        tensors.setdefault(key, []).append(place["tensor"])
        rests.setdefault(key, f": {place['what']}" + (f", through {step}" if step else ""))
    lines = [f"  {key[0]}{', '.join(tensors[key])}{rest}" if key in tensors else rest for key, rest in rests.items()]
    if len(lines) > most:
        lines[most:] = [f"  … and {len(lines) - most} more lines, in record.json"]
    return "\n".join(lines)
