"""The table and the picture of `benchmarks.accuracy`, from its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.machine import describe
from benchmarks.subject import TUNING
from infoprune.report.figures import LINE, SERIES, SOFT, axes, figure

Row = dict[str, Any]
STAGES = ("cut", "recalibrated", "tuned")
OURS, RIVALS = "default, reconstructed", "TP "
"""What the summary compares: the default of `FilterPruning`, and all methods whose names begin so."""
HEAD = """\
# Accuracy at equal MACs and equal training

`make bench-accuracy` (`python -m benchmarks.accuracy`) on {machine}.

Each network is cut once to the share of its MACs in the heading, by every method; batch norm is measured anew with
2,000 training images (all, where there are fewer); then what is left is fine-tuned by the same code: SGD with
momentum {momentum:g}, weight decay {weight_decay:g} and a peak rate of {lr:g} that falls to 0 along half a cosine,
batches of 128 images on CIFAR-10, 64 of digits and discs, 32 for the U-Net. Scores in per cent, higher is better:
test accuracy; mean intersection over union (`unet`); explained variance R² (`measurer`). *As cut* and *recalibrated*
are taken on the first 2,000 test images, the others on all of them. A seed decides about all images, their order and
their augmentation; mean (lowest…highest) over seeds. One standard error of an accuracy of 90 % on 10,000 images is
0.3.

- Without prefix: infoprune, as allocation and criterion. `default`: `infoprune.prune(model, example, macs=...,
  data=...)`, which rounds widths to what runtimes like; all others take any width. `rule of thumb`: groups that
  several layers add to stay whole, the others lose alike. `reconstructed`: right after the cut, the layers that read
  what went are fitted to their former outputs by least squares (`reconstruction_batches="auto"`), before anything is
  trained; `default, reconstructed` rounds widths too, and is what `FilterPruning` does by default. `distilled`: half
  of the loss in fine-tuning is the distance to the unpruned network's class probabilities, chosen on held-out
  training images (`recovery.md`); all other rows learn from labels alone.
- `TP`: Torch-Pruning 1.6.1 with `GroupMagnitudeImportance` (L2), `GroupTaylorImportance` or `BNScaleImportance`
  (without its sparse training), ranked in each group (`local`), over all (`global`), or over groups of equal
  structure (`isomorphic`; in these ResNets that is the same as `global`); the pruning ratio is searched until the
  MACs are at most the budget. It cannot follow a CIFAR ResNet's padded shortcuts, so there its residual streams
  stay whole, as in the rule of thumb.
- Criteria and allocations that look at data saw the same 640 training images.
- The ResNets have public weights. `mobilenet_v2` (for images of 32 by 32: its first two strides are 1) was trained here
  from scratch for 1,600 steps of 64 images, two epochs, and `vgg16_bn` for 1,200, so that there is more to gain in
  fine-tuning.
- Where the default is not ahead: on `digits` it ends within two of 359 test images (0.28 points each) of the best
  rival, and at 70 % of the MACs of `unet`, `measurer` and `vgg16_bn` within 0.5 points of the unpruned network, so that
  little is left to gain.

![score over MACs](accuracy.svg)
"""


def write(rows: Sequence[Row], folder: Path, methods: Sequence[str], tasks: Sequence[str] = ()) -> str:
    """Write ``accuracy.md`` and ``accuracy.svg``; returns the text."""
    rows = [row for row in rows if row["method"] in methods]
    draw(rows, folder / "accuracy.svg", methods)
    parts = [HEAD.format(machine=describe(), **TUNING), summary(rows)]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        whole = [f", unpruned {row['unpruned']:.1f}" for row in of_task if "unpruned" in row][:1]
        parts.append(f"## {task} ({of_task[0]['metric']}{''.join(whole)})\n")
        for budget in sorted({row["budget"] for row in of_task}, reverse=True):
            parts += section([row for row in of_task if row["budget"] == budget], budget, methods)
    missing = [task for task in tasks if task not in {row["task"] for row in rows}]
    parts += [f"Networks not measured: {', '.join(missing)}.\n"] if missing else []
    text = "\n".join(parts).rstrip() + "\n"
    (folder / "accuracy.md").write_text(text, encoding="utf-8")
    return text


def summary(rows: Sequence[Row]) -> str:
    """Return the table that compares our default with the best rival, for each network and budget.

    Args:
        rows: what was measured.
    """
    steps = min((row["steps"] for row in rows), default=0)
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    lines = [
        f"## Summary: after {steps} steps, the default of `FilterPruning` (best of Torch-Pruning)\n",
        "Bold: the lowest of our seeds is above the highest of the rival's. A dash: not measured.\n",
        "| network | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        cells = []
        for budget in budgets:
            tuned: dict[str, list[float]] = {}
            for row in rows:
                if (row["task"], row["budget"], row["steps"]) == (task, budget, steps) and "tuned" in row:
                    tuned.setdefault(row["method"], []).append(row["tuned"])
            cells.append(compared(tuned))
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compared(tuned: Mapping[str, Sequence[float]]) -> str:
    """Return our mean score and, in brackets, that of the best rival.

    Args:
        tuned: method -> scores of all seeds.

    Example:
        >>> compared({OURS: [90.0, 92.0], "TP local": [89.0], "TP global": [80.0]})
        '**91.0** (89.0)'
    """
    ours = tuned.get(OURS, ())
    rivals = [scores for method, scores in tuned.items() if method.startswith(RIVALS)]
    best = max(rivals, key=statistics.mean, default=())
    ahead = bool(ours and best) and min(ours) > max(best)
    mean, rival = (f"{statistics.mean(scores):.1f}" if scores else "–" for scores in (ours, best))
    return f"**{mean}** ({rival})" if ahead else f"{mean} ({rival})"


def section(rows: Sequence[Row], budget: float, methods: Sequence[str]) -> list[str]:
    """Return the table of one network at one budget, best first by the longest fine-tuning, and what is missing."""
    steps = sorted({row["steps"] for row in rows})
    failed = {row["method"]: row["failed"] for row in rows if "failed" in row}
    found = [method for method in methods if any(r["method"] == method and "failed" not in r for r in rows)]

    def values(method: str, stage: str, count: int | None = None) -> list[float]:
        chosen = [r for r in rows if r["method"] == method and stage in r and count in (None, r["steps"])]
        return list({r["seed"]: r[stage] for r in chosen}.values())

    def rank(method: str) -> float:
        reached = values(method, "tuned", steps[0])
        return statistics.mean(reached) if reached else 0.0

    heads = ["method", "MACs", "parameters", "as cut", "recalibrated", *(f"{count} steps" for count in steps), "seeds"]
    lines = [
        f"### {budget:.0%} of the MACs\n",
        "| " + " | ".join(heads) + " |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
    ]
    for method in sorted(found, key=rank, reverse=True):
        cells = [f"{statistics.mean(values(method, part)):.1%}" for part in ("macs", "params")]
        cells += [over_seeds(values(method, stage)) for stage in STAGES[:2]]
        cells += [over_seeds(values(method, "tuned", count)) for count in steps]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(values(method, 'cut'))} |")
    lines.append("")
    lines += [f"Failed: {method}: {reason}.\n" for method, reason in failed.items()]
    missing = [method for method in methods if method not in found and method not in failed]
    lines += [f"Not measured: {'; '.join(missing)}.\n"] if missing else []
    return lines


def over_seeds(values: Sequence[float]) -> str:
    """Mean, and the lowest and highest where there are several; a dash for none."""
    if not values:
        return "–"
    spread = f" ({min(values):.1f}…{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


PANELS = 3
"""So many networks stand side by side in the picture."""


def draw(rows: Sequence[Row], path: Path, methods: Sequence[str]) -> None:
    """Score over MACs after the shortest fine-tuning, a panel for each network."""
    rows = [row for row in rows if "tuned" in row]
    if not rows:
        return
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    across = min(len(tasks), PANELS)
    down = math.ceil(len(tasks) / PANELS)
    made, curves = figure(3.8 * across, 3.6 * down + 1.4), {}
    for place, task in enumerate(tasks):
        ax = axes(made, down, across, place + 1, title=task)
        of_task = [row for row in rows if row["task"] == task]
        shortest = min(row["steps"] for row in of_task)
        for number, method in enumerate(methods):
            points: dict[float, list[Row]] = {}
            for row in of_task:
                if row["method"] == method and row["steps"] == shortest:
                    points.setdefault(row["budget"], []).append(row)
            if points:
                curve = [
                    [statistics.mean(row[key] for row in points[b]) for b in sorted(points)]
                    for key in ("macs", "tuned")
                ]
                style = "-" if number < len(SERIES) else (0, (4, 2))
                width = 2.4 if method in ("default", OURS) else 1.0
                colour = SERIES[number % len(SERIES)]
                look = {"color": colour, "linewidth": width, "linestyle": style, "marker": "o", "markersize": 3}
                (curves[method],) = ax.plot(*curve, **look)
        ax.set_xlim(0.15, 0.75)
        ax.set_xticks([0.2, 0.3, 0.5, 0.7])
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.set_xlabel("MACs that are left", fontsize=8, color=SOFT)
        ax.set_ylabel(f"{of_task[0]['metric']}, %, after {shortest} steps", fontsize=8, color=SOFT)
        ax.grid(color=LINE, linewidth=0.6)
    known = [method for method in methods if method in curves]
    handles = [curves[method] for method in known]
    made.legend(handles, known, loc="outside lower center", ncols=across + 1, frameon=False, fontsize=7)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accuracy"}):
        made.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
