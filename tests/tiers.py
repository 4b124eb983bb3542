"""Which cases of a test run every time, and which with the slow tests only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], every: int = 2) -> list[Any]:
    """Mark cases as slow but for every n-th: use it where they go the same way, so that a few tell of a fault.

    Args:
        cases: what is given to ``parametrize``: a value, a tuple for several names, or a ``pytest.param``.
        every: n.
    """
    return [case if number % every == 0 else slow(case) for number, case in enumerate(cases)]


def slow(case: Any) -> Any:
    """Mark one case as slow.

    Args:
        case: what is given to ``parametrize``.
    """
    if hasattr(case, "marks"):  # a pytest.param
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
