"""Imports point down only: no package imports one above it, and no circle of packages exists."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

PACKAGE = Path(__file__).resolve().parents[1] / "infoprune"

LEVELS = [
    {"errors", "part", "random_state", "regression", "version"},
    {"files", "registry", "inputs", "values", "distributed", "progress", "calibration", "network_batches"},
    {"cost", "structure"},
    {"marker", "shapes", "snapshot", "state_dicts", "weight_files", "saving"},
    {"criteria", "recalibration", "evaluate", "checkpoint", "loading"},
    {"allocation", "backends", "deprecated", "export", "schedule"},
    {"reconstruction", "decide", "api", "compare", "deploy", "hub", "sensitivity", "speed", "within_drop"},
    {"data", "models", "report"},
    {"callbacks"},
    {"commands", "cli", "__main__", "__init__"},
]
"""The parts of the package, the lowest first; those of one level may import each other."""

ENGINE = [
    {"collector", "function_caches", "module_outputs", "notebook", "plan_format", "tensors", "labels"},
    {"plan", "module_state"},
    {"tracing", "attributes"},
    {"cost_model", "layers", "explain", "channel_groups", "model_costs", "groups"},
    {"validation", "surgery"},
    {"numeric_run", "trace", "verify"},
    {"__init__"},
]
"""The levels of the structure engine."""


@functools.cache
def imported(path: Path) -> list[ast.ImportFrom]:
    """Return the imports that a file runs, without those for type checkers alone."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    guards = [node for node in nodes if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    guards = [node for node in guards if node.test.id == "TYPE_CHECKING"]  # type: ignore[attr-defined]
    typing_only = {id(inner) for node in guards for inner in ast.walk(node)}
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and id(node) not in typing_only]


def imports(path: Path, prefix: str) -> Iterator[str]:
    """Yield the modules below ``prefix`` that a file imports when it runs."""
    for node in imported(path):
        if node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == prefix else [node.module]
            yield from (name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}."))


def arrows(folder: Path, prefix: str) -> set[tuple[str, str]]:
    """Return which part imports which, a part being a file or a folder right below ``folder``."""
    found = set()
    for path in folder.rglob("*.py"):
        part = path.relative_to(folder).parts[0].removesuffix(".py")
        found |= {(part, name.split(".")[0]) for name in imports(path, prefix)}
    return {(a, b) for a, b in found if a != b}


@pytest.mark.parametrize(
    ("folder", "prefix", "levels"),
    [(PACKAGE, "infoprune", LEVELS), (PACKAGE / "structure", "infoprune.structure", ENGINE)],
)
def test_no_arrow_points_up(folder: Path, prefix: str, levels: list[set[str]]) -> None:
    level = {part: number for number, parts in enumerate(levels) for part in parts}
    parts = {path.relative_to(folder).parts[0].removesuffix(".py") for path in folder.rglob("*.py")}
    assert parts <= level.keys(), f"say on which level {parts - level.keys()} is"
    known = [(a, b) for a, b in arrows(folder, prefix) if b in level]
    assert known
    up = sorted(f"{a} imports {b}" for a, b in known if level[a] < level[b])
    assert not up, up
