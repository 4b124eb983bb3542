"""What a user gets by installing: one version, an entry point, a light import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import infoprune
from infoprune.cli import main
from tests import warm

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[1]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_one_version_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", infoprune.__version__)
    for name in ("pyproject.toml", "CITATION.cff", "infoprune/__init__.py"):
        assert f'"{infoprune.__version__}"' not in (ROOT / name).read_text(encoding="utf-8"), name
    try:
        assert version("infoprune") == infoprune.__version__
    except PackageNotFoundError:
        pytest.skip("infoprune is on the path but not installed")


def test_entry_point_is_the_command() -> None:
    found = [point for point in entry_points(group="console_scripts") if point.name == "infoprune"]
    if not found:
        pytest.skip("infoprune is on the path but not installed")
    assert found[0].load() is main


def test_python_dash_m_is_the_command() -> None:
    done = python("-m", "infoprune", "--version")
    assert (done.returncode, done.stdout) == (0, f"infoprune {infoprune.__version__}\n")


def test_import_alone_brings_neither_torch_nor_lightning() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import infoprune; spent = time.perf_counter() - start;"
        "print(spent, *(name for name in ('torch', 'lightning', 'wandb', 'sklearn') if name in sys.modules))"
    )
    spent, *heavy = python("-c", script).stdout.split()
    assert heavy == []
    assert float(spent) < 0.3


def test_where_lightning_is_loaded_the_callbacks_bring_nothing_more() -> None:
    """Not matplotlib, W&B, jsonargparse, rich, sklearn, onnx: each costs about as much as all of infoprune."""
    script = (
        "import sys, torch, lightning; there = set(sys.modules); import infoprune; infoprune.FilterPruning;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - there}))"
    )
    done = warm.python("-c", script)
    brought = set(done.stdout.split())
    assert "infoprune" in brought, done.stderr
    assert brought <= {"infoprune", "numpy"}


def test_plain_pytorch_use_needs_no_lightning() -> None:
    """Also where they are installed: they are taken out of a process that has imported them, and stay out."""
    script = (
        "import sys, torch; heavy = ('lightning', 'wandb', 'jsonargparse');"
        "[sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in heavy];"
        "import infoprune; net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3));"
        "infoprune.prune(net, torch.zeros(1, 3, 8, 8), criterion='l1', filters=0.5);"
        "print(net[0].out_channels, *(name for name in heavy if name in sys.modules))"
    )
    done = warm.python("-c", script)
    assert done.stdout.split() == ["4"], done.stderr


def test_every_public_name_is_there() -> None:
    for name in infoprune.__all__:
        assert getattr(infoprune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'purne'"):
        _ = infoprune.purne
    assert set(infoprune.__all__) <= set(dir(infoprune))


def test_the_package_is_typed_and_carries_its_style_sheet() -> None:
    for name in ("py.typed", "report/report.css"):
        assert (ROOT / "infoprune" / name).is_file()
        assert name.rpartition(".")[2] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def _bounds(requirement: Requirement) -> set[str]:
    return {str(one) for one in requirement.specifier}


def _project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_conda_recipe_asks_for_what_the_wheel_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text(encoding="utf-8"))
    words = [entry.split(maxsplit=1) for entry in recipe["requirements"]["run"]]
    found = {{"pytorch": "torch"}.get(name, name): set(bounds.split(",")) for name, bounds in words}
    wanted = {one.name.lower(): _bounds(one) for one in map(Requirement, _project()["dependencies"])}
    assert found == wanted | {"python": {_project()["requires-python"]}}
    assert recipe["context"]["version"] == infoprune.__version__


def test_the_deploy_image_holds_what_its_extras_ask_for() -> None:
    """All runtimes, in versions that the extras allow."""
    extras = _project()["optional-dependencies"]
    lines = (ROOT / "docker/requirements-deploy.txt").read_text(encoding="utf-8").splitlines()
    pinned = {one.name: str(one.specifier).removeprefix("==") for one in map(Requirement, lines[1:])}
    asked = [Requirement(line) for name in ("export", "openvino", "executorch") for line in extras[name]]
    asked = [one for one in asked if one.name != "infoprune"]
    assert {one.name for one in asked} == set(pinned)
    assert all(one.specifier.contains(pinned[one.name]) for one in asked)
