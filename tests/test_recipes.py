"""The recipes of the documentation: each project is run as it stands on its page, and loses filters."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import infoprune

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPES = {title: FENCE.findall(text) for title, text in SECTION.findall(PAGE.read_text(encoding="utf-8"))}
RECIPES = {title: fences for title, fences in RECIPES.items() if any(kind == "python" for kind, _ in fences)}


def imported(code: str) -> set[str]:
    """Return the top packages that a piece of code imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


QUICK = ("A timm classifier", "Hydra")  # the others take 10 s and more


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "title", [title if title in QUICK else pytest.param(title, marks=pytest.mark.slow) for title in RECIPES]
)
def test_a_recipe_runs_as_it_stands(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(text for kind, text in RECIPES[title] if kind == "python")
    for package in sorted(imported(code) - set(sys.stdlib_module_names)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for kind, text in RECIPES[title]:
        if kind == "yaml":  # its first line says where it lies
            path = Path(text.partition("\n")[0].removeprefix("# "))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, title, "exec"), names)

    pruning, module = names["pruning"], names["module"]
    assert pruning.history[-1].macs <= names["pruning"].options["macs"] * pruning.unpruned.macs
    assert not infoprune.plan_of(module).is_empty
    assert len(pruning.unpruned.sizes) > 5


def test_the_page_has_recipes() -> None:
    assert len(RECIPES) >= 6
    assert set(QUICK) < set(RECIPES)
