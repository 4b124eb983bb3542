"""Write RESULTS.md from the records of the runs that `benchmarks.reproduce` has finished.

    python -m benchmarks.reproduced    # copies the small files of runs/reproduce to benchmarks/results/reproduce first

Every figure comes from a record. Nothing is taken from a paper but the names of the rows.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reproduce import CONTROLS, DENSE, MADE_BY, RUNS, rows
from infoprune.report.record import LayerRow, RunRecord

KEPT = Path(__file__).parent / "results" / "reproduce"
EVIDENCE = KEPT / "evidence.md"
"""What the runs support and what not, written by hand."""
RESULTS = Path(__file__).parents[1] / "RESULTS.md"
ACCURACY = "test/acc"
TABLE_HEAD = """\
| run | seeds | epochs | start | before | after | change (points) | MACs | parameters | as the papers count |
|---|---|---|---|---|---|---|---|---|---|"""
HEAD = """\
# Results

Written by `python -m benchmarks.reproduced` from the records in `benchmarks/results/reproduce`; each holds its
configuration, seed, hardware and metrics. No figure in a table comes from a paper.

What the papers claim, to compare with: method A (Tang et al., arXiv 2303.03645) ResNet-110, −71.9 % FLOPs, −69.4 %
parameters, +0.28 points; method B (Chen & Wang, arXiv 2408.16772) ResNet-56, −45.5 % FLOPs, −40.3 % parameters, +0.21
points. Their baselines, recipes and widths are not public, and our methods A and B are reconstructions.

- The rows of both methods at the same widths share their controls: **random** and **l1** are the same run with another
  criterion, **dense** is the same fine-tuning with nothing cut. A method has shown something where it beats all three.
- **before** and **after**: accuracy on the test images, in percent, of the net that the run started from and of the one
  that it ended with (its last epoch, never its best); mean ± standard deviation over seeds, and the change is that of
  each run from *its own* start. One seed has no spread, and differences of a few tenths need several.
- **MACs**, **parameters**: what was removed, by our count (multiply-accumulates of convolutions and linear layers).
  **As the papers count**: HRankPlus and CHIP add two operations for each output of a batch norm, but only to the pruned
  net, and thus state a smaller cut.
"""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        row: its row.
        variant: ``"row"`` or the control.
        record: what it left.
        made_by: the command, but for the seed.
    """

    row: str
    variant: str
    record: RunRecord
    made_by: str = ""

    @property
    def name(self) -> str:
        """What it is called in a table: its row, or the control that it is."""
        return self.row if self.variant == "row" else self.variant

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return yaml.safe_load(self.record.config)

    @property
    def training(self) -> str:
        """How long it trained, in words: what has to be equal for runs to be compared."""
        trainer, batch = self.config["trainer"], self.config["data"]["init_args"]["batch_size"]
        limit = trainer.get("limit_train_batches")
        part = "" if limit is None else f" × {limit} batches" if isinstance(limit, int) else f" × {limit:.0%}"
        precision = trainer.get("precision")
        return f"{trainer['max_epochs']}{part}, batch {batch}" + (f", {precision}" if precision else "")

    @property
    def start(self) -> str:
        """Name of the file of weights that it started from."""
        path = self.config["model"]["init_args"].get("init_from")
        if path is None:
            return "torchvision" if "weights" in str(self.config["model"]) else "scratch"
        return "own dense" if DENSE in Path(path).parts else Path(path).name

    def metric(self, when: str) -> float | None:
        """Test accuracy in percent, ``"before"`` or ``"after"``."""
        value = getattr(self.record, when).metrics.get(ACCURACY)
        return None if value is None else 100 * value


def lineage_macs(layers: Sequence[LayerRow], when: str) -> float:
    """MACs as HRankPlus and CHIP count them: biases too, and for pruned nets two operations an output of a batch norm.

    Holds for nets in which a batch norm follows every convolution, and every linear layer but the last.

    Args:
        layers: of the record.
        when: ``"before"`` or ``"after"``.
    """
    total = 0.0
    for layer in layers:
        macs, params, channels = (getattr(layer, f"{what}_{when}") for what in ("macs", "params", "channels"))
        biases = channels if layer.macs_before % layer.params_before else 0  # the MACs are those of the weights alone
        outputs = macs * channels / (params - biases)
        total += macs
        if biases and layer.kind == "conv":
            total += outputs
        if when == "after" and layer is not layers[-1]:
            total += 2 * outputs
    return total


def lineage_cut(record: RunRecord) -> float:
    """Share of the MACs removed, as HRankPlus and CHIP count."""
    return 1 - lineage_macs(record.layers, "after") / lineage_macs(record.layers, "before")


def read(folder: Path = KEPT) -> list[Run]:
    """All runs kept in a folder."""
    runs = []
    for path in sorted(folder.rglob("record.json")):
        *row, variant, _seed = path.parent.relative_to(folder).parts
        command = path.with_name(MADE_BY).read_text(encoding="utf-8").strip()
        runs.append(Run("/".join(row), variant, RunRecord.load(path), command))
    return runs


def collect(source: Path, target: Path = KEPT) -> None:
    """Copy the small files of all finished runs; the records without their words on coupling, which are long."""
    for path in source.rglob("record.json"):
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        record = RunRecord.load(path)
        record.coupling = {}
        record.save(folder / path.name)
        for small in (path.parent / MADE_BY, path.parent / "config.yaml", *path.parent.glob("metrics*.csv")):
            shutil.copyfile(small, folder / small.name)


def mean(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation of some figures."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}".replace("-", "−") + spread


def line(runs: Sequence[Run]) -> str:
    """The row of a table for runs that differ in nothing but the seed."""
    first = runs[0]
    before, after = ([value for run in runs if (value := run.metric(when)) is not None] for when in ("before", "after"))
    changes = [
        b - a for run in runs if (a := run.metric("before")) is not None and (b := run.metric("after")) is not None
    ]
    record = first.record
    cuts = (1 - record.after.macs / record.before.macs, 1 - record.after.params / record.before.params)
    cells = [
        first.name if first.name in CONTROLS else f"**{Path(first.name).name}** ({record.criterion})",
        ", ".join(str(run.record.seed) for run in runs),
        first.training,
        first.start,
        *(mean(values) if values else "" for values in (before, after)),
        mean(changes, "+.2f") if changes else "",
        *(f"−{cut:.2%}" if cut else "0" for cut in cuts),
        f"−{lineage_cut(record):.2%}" if cuts[0] else "0",
    ]
    return "| " + " | ".join(cells).replace("%", " %") + " |"


def setting(row: str) -> str:
    """What rows of the two methods at the same widths have in common, controls included."""
    return re.sub(r"method_[ab]_?", "", row)


def section(members: Sequence[str], runs: Sequence[Run]) -> str:
    """What is known about the rows of a setting."""
    text = [f"## {' and '.join(members)}", "", *(f"- `make reproduce ROW={row}`" for row in members), ""]
    if not runs:
        return "\n".join([*text, "Not run yet."])
    alike: dict[tuple[str, str, str], list[Run]] = {}
    order = [*members, *CONTROLS]
    for run in sorted(runs, key=lambda run: (run.training, order.index(run.name), run.record.seed or 0)):
        alike.setdefault((run.name, run.training, run.start), []).append(run)
    text += [TABLE_HEAD, *map(line, alike.values()), ""]
    text += [f"On {', '.join(sorted({run.record.device for run in runs}))}."]
    wanted = members if DENSE in (Path(row).name for row in members) else order
    missing = [name for name in wanted if name not in {run.name for run in runs}]
    text += [f"Not run yet: {', '.join(missing)}."] if missing else []
    text += ["", "Made by (`--seed` apart):", "", "```bash", *(group[0].made_by for group in alike.values()), "```"]
    return "\n".join(text)


def page(runs: Sequence[Run]) -> str:
    """The whole of RESULTS.md: the settings that were run first."""
    settings: dict[str, list[str]] = {}
    for row in rows():
        settings.setdefault(setting(row), []).append(row)
    found = {key: [run for run in runs if run.row in members] for key, members in settings.items()}
    order = sorted(settings, key=lambda key: not found[key])
    evidence = EVIDENCE.read_text(encoding="utf-8")
    return HEAD + "\n" + evidence + "\n" + "\n\n".join(section(settings[key], found[key]) for key in order) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where to look for finished runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where their small files are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    collect(options.runs, options.kept)
    options.out.write_text(page(read(options.kept)), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
