"""The notebooks: committed as they were executed, light, free of this machine's paths; and they still run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED = ROOT / "../shared/data"
SUBJECT = {
    "INFOPRUNE_CIFAR": SHARED,
    "INFOPRUNE_RESNET56": SHARED / "cifar10_resnets/resnet56.pt",
}
"""What the notebooks about a trained ResNet-56 read, and where it is looked for if nobody says."""

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_with_outputs_and_pictures(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert len(text) < 1_000_000
    printed = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    words = "\n".join("".join(lines) for lines in [*printed, *(cell["source"] for cell in cells)])
    assert re.findall(r"(?<![\w.:/])/\w[\w.-]*/", words) == []  # absolute paths


@pytest.mark.slow
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the dev extra: pip install -e '.[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="needs the dev extra: pip install -e '.[dev]'")
    pytest.importorskip("ipykernel", reason="needs the dev extra: pip install -e '.[dev]'")
    notebook = nbformat.read(path, as_version=4)
    for name, usual in SUBJECT.items():
        if any(name in cell.source for cell in notebook.cells):
            place = Path(os.environ.get(name, usual)).resolve()
            if not (place.is_file() or (place / "cifar-10-batches-py").is_dir()):
                pytest.skip(f"{name} is not set, and there is no CIFAR-10 with a ResNet-56 beside the repository")
            monkeypatch.setenv(name, str(place))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    ran = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in code_cells(ran) for output in cell["outputs"] if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
