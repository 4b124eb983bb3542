"""The command that runs all rows: what it runs, in which order, and what a failure does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import all_rows, reproduce
from benchmarks.all_rows import Job, jobs, run


class Script(Job):
    """A run that is over at once: it leaves its record, or fails."""

    def command(self, runs: Path, extra: Sequence[str]) -> list[str]:
        folder = reproduce.run_folder(self.row, self.seed, self.control, runs)
        done = (
            f"from pathlib import Path; p = Path({str(folder)!r}); p.mkdir(parents=True); (p / 'record.json').touch()"
        )
        return [sys.executable, "-c", "print('told'); raise SystemExit(3)" if self.control else done]


def test_every_row_exists_and_has_all_controls_at_its_widths() -> None:
    known = reproduce.rows()
    for net, rows in all_rows.ROWS.items():
        assert all(f"cifar10/{net}/{row}" in known for row, _ in rows)
        assert {control for _, control in rows} == {None, *reproduce.CONTROLS}
    assert all((reproduce.CONFIGS / name).is_file() for name in all_rows.RECIPE)


def test_a_net_without_weights_is_trained_first_and_its_rows_wait_for_it(tmp_path: Path) -> None:
    first, then = jobs(["resnet56", "resnet110"], [1, 2], {"resnet56": Path("w.pt")})
    assert [(job.row, job.seed) for job in first] == [("cifar10/resnet110/dense", 1), ("cifar10/resnet110/dense", 2)]
    assert [job.row for job in then if job.is_ready(tmp_path)] == [job.row for job in then if "resnet56" in job.row]
    folder = reproduce.run_folder("cifar10/resnet110/dense", 2, None, tmp_path)
    folder.mkdir(parents=True)
    (folder / "record.json").touch()
    assert {job.seed for job in then if job.is_ready(tmp_path) and "resnet110" in job.row} == {2}
    words = then[0].command(tmp_path, ["--trainer.max_epochs=1"])
    assert words[3:] == [
        *("cifar10/resnet56/method_b_46", "--seed", "1", "--runs", str(tmp_path), "--control", "l1"),
        *("--weights", "w.pt", "--trainer.max_epochs=1"),
    ]


def test_what_is_done_is_left_out_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(all_rows, "POLL_S", 0.05)
    todo = [Script("net/a", "l1", 1), Script("net/b", None, 1), Script("net/c", None, 1)]
    assert run(todo, 2, tmp_path, []) == todo[:1]
    assert (tmp_path / "net/a/l1/seed_1.log").read_text() == "told\n"
    assert "net/a, l1, seed 1: failed with 3" in capsys.readouterr().out
    assert run(todo[1:], 2, tmp_path, []) == []
    assert capsys.readouterr().out == ""
