"""The documentation: every code block runs, every name is real, the site builds and loads nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import infoprune
from infoprune.allocation import ALLOCATIONS
from infoprune.criteria import CRITERIA
from tests import test_readme
from tests.tiers import thinned

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXT = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
RECIPES = "recipes.md"  # needs libraries of many kinds: tests/test_recipes.py
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and the number of its first line."""

    page: str
    kind: str
    text: str
    line: int


def blocks(kind: str) -> Iterator[Block]:
    for page, text in TEXT.items():
        for match in FENCE.finditer(text):
            if match[1] == kind:
                yield Block(page, kind, match[2], text.count("\n", 0, match.start(2)) + 1)


COMMANDS = dict.fromkeys(command for block in blocks("bash") for command in test_readme.commands(block.text))


def test_fences_are_of_known_kinds() -> None:
    """``py`` or an indented fence would slip through the tests below."""
    assert len(list(blocks("python"))) > 20
    for page, text in TEXT.items():
        opened = re.findall(r"^[ \t]*```.*$", text, re.MULTILINE)
        assert set(opened[::2]) <= {"```python", "```bash", "```console", "```yaml", "```toml", "```text"}, page
        assert set(opened[1::2]) <= {"```"}, page


PAGES = sorted({block.page for block in blocks("python")} - {RECIPES})
COSTLY = ("allocation.md", "dashboard.md")


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in COSTLY else p for p in PAGES])
@pytest.mark.usefixtures("batches")
def test_python_blocks_run_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for registry in (CRITERIA, ALLOCATIONS):  # what a page registers is gone afterwards
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks("python"):
        if block.page == page:  # blank lines before it, so that a traceback shows the page's own line numbers
            exec(compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec"), names)


def test_what_a_page_shows_as_printed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ``text`` block is the output of the python block above it."""
    pairs = [
        (code, shown)
        for code, shown in zip(all_blocks(), all_blocks()[1:], strict=False)
        if (code.kind, shown.kind) == ("python", "text")
    ]
    assert len(pairs) == len(list(blocks("text"))) > 0
    for code, shown in pairs:
        exec(compile(code.text, code.page, "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out == shown.text


def all_blocks() -> list[Block]:
    kinds = ("python", "bash", "console", "yaml", "text")
    return sorted((block for kind in kinds for block in blocks(kind)), key=lambda block: (block.page, block.line))


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """The README's check of one command."""
    return lambda command: test_readme.test_commands_are_understood(command, monkeypatch, capsys)


@pytest.mark.parametrize(
    "command", thinned([command for command in COMMANDS if command not in test_readme.COMMANDS], 3)
)
def test_commands_are_understood(command: str, understood: Callable[[str], None]) -> None:
    understood(command)


def test_configurations_are_understood(tmp_path: Path, understood: Callable[[str], None]) -> None:
    for block in (block for block in blocks("yaml") if block.page != RECIPES):
        config = tmp_path / "config.yaml"
        config.write_text(block.text)
        understood(f"infoprune fit --config {shlex.quote(str(config))}")


@pytest.mark.parametrize("part", ["criterion", "allocation"])
def test_every_part_is_documented(part: str) -> None:
    page, registry = {
        "criterion": (TEXT["criteria.md"], CRITERIA),
        "allocation": (TEXT["allocation.md"], ALLOCATIONS),
    }[part]
    table = page.partition(f"| `{part}=` |")[2].partition("\n\n")[0]
    cells = (row.split("|")[1] for row in table.splitlines()[2:])
    listed = {name for cell in cells for name in re.findall(r"\w+", re.sub(r"\(.*?\)", "", cell))}
    assert listed == set(registry.names)


def test_every_public_name_has_its_reference() -> None:
    reference = "\n".join(text for page, text in TEXT.items() if page.startswith("api/"))
    documented = set(re.findall(r"^::: infoprune\.[\w.]*?(\w+)$", reference, re.MULTILINE))
    assert set(infoprune.__all__) - {"__version__"} <= documented
    assert {CRITERIA._find(name).__name__ for name in CRITERIA.names} <= documented
    for path in re.findall(r"^::: (infoprune\.[\w.]+)$", reference, re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_tests_that_a_page_names_exist() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", "\n".join(TEXT.values()))
    assert len(named) > 20
    for file, name in named:
        functions = {
            node.name
            for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert name in functions, f"{file}::{name}"


def test_files_that_a_page_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/])((?:configs|docker|benchmarks|tests)/[\w./]*\w)", "\n".join(TEXT.values())))
    assert {"configs/quickstart.yaml", "docker/Dockerfile"} <= named
    for name in named:
        assert (ROOT / name).exists(), name


# -- the site ---------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation() -> None:
    """Read as text: the configuration may hold tags that only MkDocs knows."""
    listed = re.findall(r"^\s+- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(TEXT)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the docs extra: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loads = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|<link[^>]*\shref=\"([^\"]+)\"")
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        for match in loads.finditer(html):
            assert not re.match(r"(https?:)?//", match[1] or match[2]), (page.name, match[0])
        assert "arithmatex" not in html, page.name
        assert not re.search(r":(class|func|meth|mod|data):", html), page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


# -- docker -----------------------------------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def test_the_dockerfile_copies_what_is_there_and_the_build_sees_it() -> None:
    visible = [line[1:] for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    copies = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    assert len(copies) >= 6
    for sources in copies:
        option, *paths = sources.split()
        if option.startswith("--from="):
            assert option.removeprefix("--from=") in stages
            continue
        for path in (option, *paths):
            assert (ROOT / path).exists(), path
            assert path in visible, path


def test_the_images_are_pinned_and_run_without_rights() -> None:
    assert re.search(r"^ARG PYTHON_TAG=\d+\.\d+\.\d+-\S+$", DOCKERFILE, re.MULTILINE)
    bases = set(re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE))
    assert bases == {"python:${PYTHON_TAG}", "base", "cpu", "cpu-requirements"}
    for image in ("cpu", "cuda"):
        final = DOCKERFILE.partition(f" AS {image}\n")[2].partition("\nFROM ")[0]
        assert "\nUSER 1000:1000\n" in final
        assert 'ENTRYPOINT ["infoprune"]' in final
    pins = (ROOT / "docker" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.\-\[\]]+==[\d.]+", line) for line in pins)


def test_the_requirements_are_all_that_the_package_needs() -> None:
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [Requirement(line) for line in [*project["dependencies"], *extras["demo"], *extras["tensorboard"]]]
    lines = (ROOT / "docker" / "requirements.txt").read_text().splitlines()
    pinned = {pin.name: pin for pin in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert {requirement.name for requirement in needed} == set(pinned)
    for requirement in needed:
        (version,) = (spec.version for spec in pinned[requirement.name].specifier)
        assert requirement.specifier.contains(version), requirement
        assert requirement.extras == pinned[requirement.name].extras, requirement


def test_the_workers_of_the_compose_file_are_understood(understood: Callable[[str], None]) -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    first, second = compose["services"]["worker-0"], compose["services"]["worker-1"]
    assert first["build"]["target"] in re.findall(r" AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert first["command"] == second["command"]
    assert [worker["environment"]["NODE_RANK"] for worker in (first, second)] == ["0", "1"]
    assert first["environment"]["MASTER_ADDR"] in compose["services"]
    port = int(first["environment"]["MASTER_PORT"])
    assert f":{port:04X} " in json.dumps(first["healthcheck"]["test"])
    words = [re.sub(r"\$\{CONFIG:-/opt/infoprune/([^}]+)\}", r"\1", word) for word in first["command"]]
    understood(shlex.join(["infoprune", *words]))


def test_the_check_script_is_sound() -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "docker" / "check.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
