"""Write RESULTS.md from a summary of every run that `benchmarks.reproduce` has finished.

    python -m benchmarks.reproduced    # adds the runs in runs/reproduce to benchmarks/results/reproduced.jsonl first

Every figure comes from a run. Nothing is taken from a paper but the names of the rows.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from benchmarks.reproduce import CONTROLS, DENSE, MADE_BY, RUNS, rows
from infoprune.report.figures import LINE, SERIES, SOFT, axes, figure
from infoprune.report.record import LayerRow, RunRecord

RESULTS = Path(__file__).parents[1] / "RESULTS.md"
KEPT = Path(__file__).parent / "results" / "reproduced.jsonl"
EVIDENCE = KEPT.with_name("reproduced_evidence.md")
"""What the runs support and what not, written by hand."""
PICTURE = KEPT.with_suffix(".svg")
TEST, VALIDATION = "test/acc", "val/acc"
TABLE_HEAD = """\
| net | run | seeds | training | start | before | after | change (points) | MACs | parameters | as the papers count |
|---|---|---|---|---|---|---|---|---|---|---|"""
HEAD = """\
# Results

Written by `python -m benchmarks.reproduced` from `benchmarks/results/reproduced.jsonl`, one summary a run. No figure
in a table comes from a paper. How methods and allocations compare at equal MACs is in
[`benchmarks/results/accuracy.md`](benchmarks/results/accuracy.md).

What the papers claim, to compare with: method A (Tang et al., arXiv 2303.03645) ResNet-110, −71.9 % FLOPs, −69.4 %
parameters, +0.28 points; method B (Chen & Wang, arXiv 2408.16772) ResNet-56, −45.5 % FLOPs, −40.3 % parameters, +0.21
points. Their baselines, recipes and widths are not public, and our methods A and B are reconstructions.
"""
LEGEND = """\
- **random** and **l1** are the row with another criterion, **dense** is the same fine-tuning with nothing cut. A method
  has shown something where it beats all three.
- **before** and **after**: test accuracy in percent of the net that the run started from and of the one that it ended
  with (its last epoch, never its best); mean ± standard deviation over seeds. The change is that of each run from *its
  own* start. One seed has no spread, and differences of a few tenths need several.
- **MACs**, **parameters**: what was removed, by our count. **As the papers count**: HRankPlus and CHIP add two
  operations for each output of a batch norm, but only to the pruned net, and thus state a smaller cut.
"""


@dataclass(frozen=True)
class Run:
    """One finished run, as small as the table and the picture need it.

    Attributes:
        row: its row.
        variant: ``"row"`` or the control.
        seed: of everything.
        criterion: that chose the filters.
        training: epochs, batch and precision: what has to be equal for runs to be compared.
        start: file of weights that it started from.
        before: test accuracy in per cent of the net that it started from.
        after: the same at the end.
        curve: accuracy in per cent on the validation images after each epoch; the rows validate on the test images.
        macs: share of the MACs removed, by our count.
        params: share of the parameters removed.
        lineage: share of the MACs removed, as HRankPlus and CHIP count.
        device: that it ran on.
        made_by: the command, but for the seed.
    """

    row: str
    variant: str
    seed: int | None
    criterion: str
    training: str
    start: str
    before: float | None
    after: float | None
    curve: list[float]
    macs: float
    params: float
    lineage: float
    device: str
    made_by: str = ""

    @property
    def name(self) -> str:
        """What it is called in a table: its row, or the control that it is."""
        return self.row if self.variant == "row" else self.variant

    @property
    def setting(self) -> str:
        """What rows of the two methods at the same widths have in common, controls included."""
        return setting(self.row)


def summary(folder: Path, row: str, variant: str) -> Run:
    """Summarise the run in a folder."""
    record = RunRecord.load(folder / "record.json")
    config = yaml.safe_load(record.config)
    before, after = (percent(totals.metrics.get(TEST)) for totals in (record.before, record.after))
    return Run(
        row,
        variant,
        record.seed,
        record.criterion,
        training(config),
        start(config),
        before,
        after,
        [reached for entry in record.history if (reached := percent(entry.get(VALIDATION))) is not None],
        round(1 - record.after.macs / record.before.macs, 7),
        round(1 - record.after.params / record.before.params, 7),
        round(lineage_cut(record), 7) if record.after.macs < record.before.macs else 0.0,
        record.device,
        (folder / MADE_BY).read_text(encoding="utf-8").strip(),
    )


def percent(share: float | None) -> float | None:
    """Return a share in per cent, to four digits."""
    return None if share is None else round(100 * share, 4)


def training(config: dict[str, Any]) -> str:
    """Say how long and how a run trained."""
    trainer, batch = config["trainer"], config["data"]["init_args"]["batch_size"]
    limit = trainer.get("limit_train_batches")
    part = "" if limit is None else f" × {limit} batches" if isinstance(limit, int) else f" × {limit:.0%}"
    precision = trainer.get("precision")
    return f"{trainer['max_epochs']} epoch{'s' * (trainer['max_epochs'] != 1)}{part}, batch {batch}" + (
        f", {precision}" if precision else ""
    )


def start(config: dict[str, Any]) -> str:
    """Name the weights that a run started from."""
    path = config["model"]["init_args"].get("init_from")
    if path is None:
        return "torchvision" if "weights" in str(config["model"]) else "scratch"
    return "own dense" if DENSE in Path(path).parts else Path(path).name


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


def read(kept: Path = KEPT) -> list[Run]:
    """All runs that are kept."""
    return [Run(**json.loads(line)) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []


def collect(source: Path, kept: Path = KEPT) -> None:
    """Add the summaries of all finished runs in a folder; they replace those of the same row, seed and training."""
    runs = read(kept)
    for path in sorted(source.rglob("record.json")):
        *row, variant, _seed = path.parent.relative_to(source).parts
        runs.append(summary(path.parent, "/".join(row), variant))
    latest = {(run.row, run.variant, run.seed, run.training): run for run in runs}
    lines = [
        json.dumps(asdict(run), ensure_ascii=False) for _, run in sorted(latest.items(), key=lambda item: str(item[0]))
    ]
    kept.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def mean(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation of some figures."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}".replace("-", "−") + spread


def line(runs: Sequence[Run]) -> str:
    """Return the row of a table for runs that differ in nothing but the seed."""
    first = runs[0]
    before, after = (
        [value for run in runs if (value := getattr(run, when)) is not None] for when in ("before", "after")
    )
    changes = [run.after - run.before for run in runs if run.before is not None and run.after is not None]
    cells = [
        Path(first.row).parent.as_posix(),
        first.name if first.name in CONTROLS else f"**{Path(first.name).name}** ({first.criterion})",
        ", ".join(str(run.seed) for run in runs),
        first.training,
        first.start,
        *(mean(values) if values else "" for values in (before, after)),
        mean(changes, "+.2f") if changes else "",
        *(f"−{cut:.2%}" if cut else "0" for cut in (first.macs, first.params, first.lineage)),
    ]
    return "| " + " | ".join(cells).replace("%", " %") + " |"


def setting(row: str) -> str:
    """Return what rows of the two methods at the same widths have in common."""
    return re.sub(r"method_[ab]_?", "", row)


def alike(runs: Iterable[Run]) -> list[list[Run]]:
    """Group runs that differ only in the seed; methods before controls."""
    order = [*rows(), *CONTROLS]
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.setting, run.training, order.index(run.name), run.seed or 0)):
        found.setdefault((run.name, run.setting, run.training, run.start), []).append(run)
    return list(found.values())


def table(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a line for each group of runs, and how they were made."""
    lines = [
        TABLE_HEAD,
        *map(line, groups),
        "",
        f"On {', '.join(sorted({run.device for g in groups for run in g}))}.",
        "",
    ]
    return [*lines, "Made by (`--seed` apart):", "", "```bash", *(group[0].made_by for group in groups), "```", ""]


def compared(runs: Sequence[Run]) -> set[tuple[str, str]]:
    """Return settings and trainings that have a dense control: those in which a method can be judged."""
    return {(run.setting, run.training) for run in runs if run.variant == DENSE}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy over epochs of every run that can be judged, a panel for each setting and training."""
    panels = sorted(compared(runs))
    made = figure(5.2 * max(len(panels), 1), 3.8)
    for place, panel in enumerate(panels):
        ax = axes(made, 1, len(panels), place + 1, title=f"{panel[0].removeprefix('cifar10/')}: {panel[1]}")
        members = [group for group in alike(runs) if (group[0].setting, group[0].training) == panel]
        for number, group in enumerate(members):
            for run in group:
                label = Path(run.name).name if run is group[0] else None
                epochs = range(1, len(run.curve) + 1)
                ax.plot(epochs, run.curve, color=SERIES[number], linewidth=1.4, marker="o", markersize=3, label=label)
        start_at = next((run.before for group in members for run in group if run.before is not None), None)
        if start_at is not None:
            ax.axhline(start_at, color=SOFT, linewidth=0.8, linestyle=(0, (3, 2)), label="unpruned")
        ax.set_xlabel("epoch", fontsize=8, color=SOFT)
        ax.set_ylabel("test accuracy, %", fontsize=8, color=SOFT)
        ax.grid(color=LINE, linewidth=0.6)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reproduced"}):
        made.savefig(path, metadata={"Date": None})


def page(runs: Sequence[Run], picture: str = PICTURE.name) -> str:
    """Return the whole of RESULTS.md."""
    judged = compared(runs)
    groups = alike(runs)
    first = [group for group in groups if (group[0].setting, group[0].training) in judged]
    others = [group for group in groups if group not in first]
    done = {run.row for run in runs}
    parts = [HEAD, EVIDENCE.read_text(encoding="utf-8"), "## Runs with all their controls\n", *table(first)]
    parts += [f"![accuracy over epochs](benchmarks/results/{picture})\n", LEGEND]
    parts += ["<details>", "<summary>Runs without a dense control of the same training</summary>\n", *table(others)]
    parts += ["</details>\n", "## Rows\n"]
    parts += [f"- `make reproduce ROW={row}`" + ("" if row in done else ": not run yet") for row in rows()]
    return "\n".join(parts) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where to look for finished runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="file of their summaries")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    collect(options.runs, options.kept)
    runs = read(options.kept)
    draw(runs, options.kept.with_suffix(".svg"))
    options.out.write_text(page(runs, options.kept.with_suffix(".svg").name), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
