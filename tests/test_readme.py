"""Every code block of the README runs, every file that it names exists."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infoprune.cli import TOOLS, TRAINING, main
from infoprune.commands.model_names import with_full_names
from infoprune.commands.parser import parse
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Return the commands of a block, without comments; a line that ends in a backslash goes on."""
    return [line.partition("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines() if line]


COMMANDS = [command for kind, text in BLOCKS if kind == "bash" for command in commands(text)]

ALONE = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def test_blocks_are_found() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "bash"}
    assert len(blocks("python")) >= 2
    assert len(COMMANDS) >= 6


@pytest.mark.usefixtures("batches")
def test_each_python_block_runs_as_it_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spaces: list[dict[str, object]] = [{"__name__": "__main__"} for _ in blocks("python")]
    for number, (text, names) in enumerate(zip(blocks("python"), spaces, strict=True), 1):
        exec(compile(text, f"README.md, python block {number}", "exec"), names)
    pruning = spaces[0]["pruning"]
    assert [event.epoch for event in pruning.history] == [1, 2]  # type: ignore[attr-defined]
    assert (tmp_path / "pruned.pt").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Targets of make exist; commands of infoprune parse with every option, against the real classes."""
    program, *words = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
    elif program == "python":  # python -m benchmarks.NAME
        warm.python(*words[:2], "--help", cwd=ROOT).check_returncode()
    elif program == "infoprune":
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["infoprune"])
        if words[0] in TOOLS and "--help" not in words:
            options = with_full_names(words)[1:]
            parse(importlib.import_module(f"infoprune.commands.{words[0]}").make(options), options)
            return
        extra = [] if {"--help", "--print_config", "--print_config=comments"} & set(words) else ["--print_config"]
        try:
            code = main([*words, *extra])
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        assert code == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    else:
        pytest.fail(f"no way to check {program!r}: teach this test, or leave the command out of the README")


@pytest.mark.slow
def test_the_trainings_run_one_after_the_other(tmp_path: Path) -> None:
    """A fit that changes one option of the quickstart ends well too, and the test finds the first one's checkpoint."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "infoprune" and words[0] in TRAINING:
            done = subprocess.run(
                [sys.executable, "-m", program, *words], cwd=tmp_path, env=ALONE, capture_output=True, text=True
            )
            assert done.returncode == 0, (command, done.stderr)


def test_links_and_pictures_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_files_that_the_architecture_names_exist() -> None:
    rows = re.findall(r"^\|.*\|(.*)\|$", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w/]+(?:\.py|/))`", row)]
    assert len(names) > 15
    for name in names:
        assert (ROOT / "infoprune" / name).exists() or list((ROOT / "infoprune").rglob(name)), name


def test_the_criteria_and_allocations_are_the_registered_ones() -> None:
    from infoprune.allocation import ALLOCATIONS
    from infoprune.criteria import CRITERIA

    for option, registry in (("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
        (row,) = re.findall(rf"^\|.*\| `{option}=` \| (.*) \|$", README, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == set(registry.names), option
