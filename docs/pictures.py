"""Draws the pictures of the documentation that show what commands print and what the dashboard holds.

    python docs/pictures.py

Everything is run for real: a small fit (its W&B run offline), and the commands on what it leaves.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from infoprune.cli import main as infoprune  # noqa: E402
from infoprune.commands import parser  # noqa: E402
from infoprune.report import RunRecord, figures  # noqa: E402

NET = ["--model", "CifarResNet", "--model.depth", "8", "--input_shape", "1,3,32,32"]
SCREENS = {
    "inspect": ["inspect", *NET, "--sensitivity"],
    "prune": ["prune", *NET, "--macs", "0.5", "--latency_repeats", "0", "--out", "pruned"],
    "export": ["export", "--model", "pruned", "--out", "exported"],
    "benchmark": ["benchmark", *NET, "--macs", "0.5", "--batch", "1", "32", "--threads", "1", "--repeats", "60"],
    "compare": ["compare", "--model", "runs/quickstart/version_0", "--data", "DigitsDataModule", "--recalibrate",
                "--criteria", "random", "l1", "capacity_independence", "--budgets", "0.7", "0.5",
                "--plot", str(IMAGES / "pareto.png")],
}  # fmt: skip


def screen(name: str, words: list[str]) -> None:
    """Run a command and keep what it prints as a picture, without the web font that rich would ask for."""
    console = Console(record=True, width=112, file=io.StringIO())
    parser.Console = lambda **_: console  # type: ignore[assignment, misc]
    assert infoprune(words) == 0
    title = shlex.join(["$ infoprune", *words]).replace("'", "").replace(f"{IMAGES}/", "")
    svg = console.export_svg(title=title if len(title) < 120 else f"{title[:110]} ...").replace(f"{IMAGES}/", "")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (IMAGES / f"{name}.svg").write_text(svg.replace("Fira Code", "DejaVu Sans Mono"), encoding="utf-8")


def fit() -> Path:
    """Train and prune on digits, logging to W&B offline; returns the run folder."""
    command = [sys.executable, "-m", "infoprune", "fit", "--config", str(ROOT / "configs/quickstart.yaml")]
    csv = "{class_path: CSVLogger, init_args: {save_dir: runs, name: quickstart}}"
    loggers = f"[{csv}, {{class_path: WandbLogger, init_args: {{offline: true}}}}]"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([*command, f"--trainer.logger={loggers}"], check=True, env=environment, capture_output=True)
    return Path("runs/quickstart/version_0")


def dashboard(run: Any) -> None:
    """Draw the dashboard's panels from the file that the W&B client wrote."""
    made = figures.figure(13, 7.2)
    rows = [row for row in run.history if "prune/macs" in row]
    events = [row["prune/event"] for row in rows]

    ax = figures.axes(made, 2, 3, 1, title="Quality: val/acc")
    points = [(row["trainer/global_step"], row["val/acc"]) for row in run.history if "val/acc" in row]
    ax.plot(*zip(*points, strict=True), color=figures.ACCENT)
    ax.set_xlabel("trainer/global_step", fontsize=8)

    ax = figures.axes(made, 2, 3, 2, title="Left of the cost")
    for name, colour in (("macs", figures.ACCENT), ("params", figures.CUT)):
        ax.plot(events, [row[f"prune/{name}_ratio"] for row in rows], "o-", color=colour, label=f"prune/{name}_ratio")
    ax.set_xlabel("prune/event", fontsize=8)
    ax.set_xticks(events)
    ax.legend(frameon=False, fontsize=8)

    ax = figures.axes(made, 2, 3, 3, title="Quality before each event")
    ax.plot(events, [row["prune/before_cut/val/acc"] for row in rows], "o-", color=figures.ACCENT)
    ax.set_xlabel("prune/event", fontsize=8)
    ax.set_xticks(events)

    ax = figures.axes(made, 2, 3, 4, title="Scores of the last event: what stayed, what went")
    for name, colour in (("kept", figures.ACCENT), ("removed", figures.CUT)):
        histogram = rows[-1][f"prune/scores/{name}"]
        style = {"fill": True, "alpha": 0.75, "color": colour, "label": f"prune/scores/{name}"}
        ax.stairs(histogram["values"], histogram["bins"], **style)
    ax.legend(frameon=False, fontsize=8)

    ax = figures.axes(made, 2, 3, 5, title="prune/widths: share of each group that is left")
    for name in rows[0]:
        if name.startswith("prune/width/"):
            first = first_width(name)
            shares = [1.0, *(row[name] / first for row in rows)]
            ax.plot([0, *events], shares, color=figures.ACCENT, alpha=0.5)
    ax.set_xlabel("event", fontsize=8)
    ax.set_xticks([0, *events])

    ax = figures.axes(made, 2, 3, 6, title="Summary")
    ax.axis("off")
    names = [name for name in sorted(run.summary) if re.match(r"prune/(after|before|\w+_kept|speedup)", name)]
    cells = [[name, f"{run.summary[name]:.4g}"] for name in names if isinstance(run.summary[name], float)]
    table = ax.table(cells, cellLoc="left", edges="horizontal", loc="upper left", colWidths=[0.7, 0.3])
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    made.savefig(IMAGES / "dashboard.png", dpi=110)


def first_width(name: str) -> float:
    """The width of a layer before the first event, as the record tells it."""
    record = RunRecord.load("runs/quickstart/version_0/record.json")
    return float(next(row.channels_before for row in record.layers if f"prune/width/{row.name}" == name))


def main() -> None:
    """Draw them all."""
    from tests.wandb_file import read_offline_run

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = fit()
        dashboard(read_offline_run(Path()))
        record = RunRecord.load(run / "record.json")
        figures.heat_map(record).savefig(IMAGES / "heat_map.png", dpi=110)
        for name, words in SCREENS.items():
            screen(name, words)
        os.chdir(ROOT)
    print(*sorted(path.name for path in IMAGES.iterdir()))


if __name__ == "__main__":
    main()
