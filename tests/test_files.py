"""Files are written whole, by any number of writers at once, and never through a link that somebody has planted."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from infoprune.errors import CheckpointError
from infoprune.files import write_text_whole, written_whole
from infoprune.report.record import RunRecord, Totals

SIZE = 200_000


def _write_often(path: Path, letter: str) -> None:
    for _ in range(60):
        write_text_whole(path, letter * SIZE)


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "shared.txt"
    processes = [multiprocessing.Process(target=_write_often, args=(path, letter)) for letter in "ab"]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if path.exists():
            text = path.read_text()
            assert text in ("a" * SIZE, "b" * SIZE)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert os.listdir(tmp_path) == ["shared.txt"]


def test_links_are_replaced_and_their_targets_stay(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    for name in ("report.html", ".report.html.part"):
        (tmp_path / name).symlink_to(victim)
    write_text_whole(tmp_path / "report.html", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "report.html").read_text() == "new"
    assert not (tmp_path / "report.html").is_symlink()


def test_a_failing_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("old")

    def half() -> None:
        with written_whole(path) as scratch:
            scratch.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert os.listdir(tmp_path) == ["words.txt"]
    assert path.read_text() == "old"


def test_devices_and_pipes_are_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="device or a pipe"):
            write_text_whole(path, "text")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_record_cannot_steer_the_terminal() -> None:
    record = RunRecord("Net\x1b[2J", "l1\x9b31m", before=Totals(100, 10), after=Totals(50, 5))
    record.options = {"frozen": ["a\x07b"]}
    record.config = "two:\n\tlines"
    read = RunRecord.from_json(record.to_json())
    assert read.model == "Net\\x1b[2J"
    assert read.criterion == "l1\\x9b31m"
    assert read.options == {"frozen": ["a\\x07b"]}
    assert read.config == "two:\n\tlines"


def test_a_record_nested_too_deeply_is_refused() -> None:
    for text in ("[" * 50_000, '{"format": 1, "model": ' + "[" * 2000 + "]" * 2000 + "}"):
        with pytest.raises(CheckpointError):
            RunRecord.from_json(text)
