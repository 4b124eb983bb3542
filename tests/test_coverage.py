"""The tables of models that the structure engine prunes exactly are whole and true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import zoo
from benchmarks.coverage import OTHER, RESULT, TIMM
from benchmarks.zoo_others import OTHERS

ROOT = Path(__file__).resolve().parents[1]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def rows(path: Path) -> dict[str, list[str]]:
    return {cells(line)[0]: cells(line) for line in path.read_text().splitlines() if line.startswith("| ")}


TABLE = rows(RESULT)


def check(row: list[str]) -> None:
    """Half of every group is gone, and the outputs are those of the masked original."""
    _, _, prunable, _, macs, _, error, *_ = row
    assert float(error) < 1e-8
    assert int(prunable) > 0
    assert float(macs) <= 0.40


def test_the_table_has_every_model() -> None:
    assert set(TABLE) - {"model"} == set(zoo.names())
    for name in zoo.names():
        check(TABLE[name])


@pytest.mark.parametrize(("path", "names"), [(TIMM, zoo.TIMM), (OTHER, list(OTHERS))], ids=["timm", "others"])
def test_the_tables_of_other_libraries_are_whole_and_every_model_exact(path: Path, names: list[str]) -> None:
    table = rows(path)
    assert list(table)[1:] == names
    for name in names:
        assert float(table[name][6]) < 1e-8
        assert int(table[name][2]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.names(), *zoo.TIMM, *OTHERS])
def test_the_tables_can_be_made_again(name: str) -> None:
    library = name.partition("/")[0] if "/" in name else ""
    path = {"": RESULT, "timm": TIMM}.get(library, OTHER)
    if library:
        package = {"segmentation-models": "segmentation_models_pytorch"}.get(library, library)
        pytest.importorskip(package, reason=f"{package} is not installed")
    command = [sys.executable, "-m", "benchmarks.coverage", name]  # a process each: some models take gigabytes
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    row = next(cells(line) for line in done.stdout.splitlines() if line.startswith(f"| {name} "))
    if library:
        assert float(row[6]) < 1e-8
    else:
        check(row)
    assert row[2:6] == rows(path)[name][2:6]  # groups and costs; times and rounding errors may differ
