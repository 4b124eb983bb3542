"""The table of torchvision models that the structure engine prunes exactly is whole and true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import zoo
from benchmarks.coverage import RESULT

ROOT = Path(__file__).resolve().parents[1]
TRANSFORMERS = ("vit_", "swin", "maxvit", "mvit")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


TABLE = {cells(line)[0]: cells(line) for line in RESULT.read_text().splitlines() if line.startswith("| ")}


def check(row: list[str]) -> None:
    """Half of every group is gone, and the outputs are those of the masked original."""
    name, _, prunable, _, macs, _, error = row
    assert float(error) < 1e-8
    assert int(prunable) > 0
    assert float(macs) <= (0.70 if name.startswith(TRANSFORMERS) else 0.40)


def test_the_table_has_every_model() -> None:
    assert set(TABLE) - {"model"} == set(zoo.names())
    for name in zoo.names():
        check(TABLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_the_table_can_be_made_again(name: str) -> None:
    command = [sys.executable, "-m", "benchmarks.coverage", name]  # a process each: some models take gigabytes
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    row = next(cells(line) for line in done.stdout.splitlines() if line.startswith(f"| {name} "))
    check(row)
    assert row[2:6] == TABLE[name][2:6]  # groups and costs; times and rounding errors may differ
