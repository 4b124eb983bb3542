"""Are budgets of measured time met, and how long does the search take? Networks pruned to shares of their time.

`reached` is what pruning measured when it chose the widths. `anew` is measured by another process, which loads both
models from disk and lets them take turns. Seconds of search are processor time of the whole call: `cold` with no table
of layers on the disk, `warm` with the one that was measured before. Run from the repository root, a slice at a time
(one to three minutes each) or all of it:

    python -m benchmarks.latency_budget       # everything; writes latency_budget.jsonl and .md into benchmarks/results
    python -m benchmarks.latency_budget --networks resnet18 --backends eager --budgets 0.6
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import infoprune
from benchmarks import zoo
from benchmarks.cells import Cells
from benchmarks.machine import describe
from infoprune.backends import get_backend
from infoprune.backends.timing import PairedRuns

RESULTS = Path(__file__).parent / "results" / "latency_budget.jsonl"
TABLE = RESULTS.with_suffix(".md")
CELLS = Cells(RESULTS, ("network", "backend", "budget"))
NETWORKS = ("mobilenet_v2", "resnet18")
BACKENDS = ("eager", "onnxruntime", "openvino")
BUDGETS = (0.8, 0.6, 0.5)
PAIRS, MOST, PRECISION = 30, 210, 0.01
CLOSE = 0.03


def measured(network: str, backend: str, budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Prune one network to each budget, the first time with no table of layers."""
    for budget in budgets:
        torch.manual_seed(0)
        pruned, images = zoo.build(network).eval(), torch.randn(1, 3, 224, 224)
        start = time.process_time()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = infoprune.prune(pruned, images, "l1", latency=budget, backend=backend)
        seconds = time.process_time() - start
        with TemporaryDirectory() as folder:
            infoprune.save(pruned, path := Path(folder, "pruned.pt"))
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.latency_budget", "--again", network, backend, str(path)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        anew, error = map(float, done.stdout.split())
        yield {
            "network": network, "backend": backend, "budget": budget,
            "table": "cold" if budget == budgets[0] else "warm",
            "reached": result.latency, "error": result.latency_error, "anew": anew, "anew_error": error,
            "macs": result.after.macs / result.before.macs, "seconds": seconds, "load": round(os.getloadavg()[0], 1),
            "said": any("budget" in (text := str(warning.message)) or "give or take" in text for warning in said),
        }  # fmt: skip


def again(network: str, backend: str, path: str) -> tuple[float, float]:
    """Return the share of the original's time that a saved model takes, and half of its relative 95 % interval."""
    original, images = zoo.build(network).eval(), torch.randn(1, 3, 224, 224)
    pruned = infoprune.load(path, copy.deepcopy(original)).eval()
    pairs = PairedRuns(*(get_backend(backend).warmed_up(model, images) for model in (pruned, original)))
    pairs.more(PAIRS)
    while pairs.error > PRECISION and len(pairs.ratios) < MOST:
        pairs.more(PAIRS)
    return pairs.share, pairs.error


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the results as Markdown."""
    yield "# Budgets of measured time"
    yield ""
    yield f"`python -m benchmarks.latency_budget` on {describe()}."
    yield "One image of 224 x 224, one thread. Shares of the original's time, by `infoprune.prune(..., latency=budget,"
    yield "backend=...)`, give or take half of the 95 % interval; `anew`: measured by another process from the saved"
    yield "model, in bold where it is more than 3 % above or below the budget and no warning said so. A star: a warning"
    yield "said that the budget is not met closely, or that times scatter. `seconds`: processor time of the call, with"
    yield "the layers' times to be measured first (cold) or read from the disk (warm). `load`: processes that"
    yield "wanted one of the processors. Rows without intervals and load are of the search before it measured those."
    yield ""
    yield "| network | backend | budget | reached | anew | MACs left | seconds | load |"
    yield "|---" * 8 + "|"
    for row in rows:
        anew = _text(row, "anew", "anew_error")
        if abs(row["anew"] / row["budget"] - 1) > CLOSE and not row["said"]:
            anew = f"**{anew}**"
        reached = _text(row, "reached", "error") + (" *" if row["said"] else "")
        yield (
            f"| {row['network']} | {row['backend']} | {row['budget']} | {reached} | {anew} | {row['macs']:.3f} | "
            f"{row['seconds']:.0f} ({row['table']}) | {row.get('load', '')} |"
        )


def _text(row: dict[str, Any], share: str, error: str) -> str:
    """Return a share with its interval; older rows have none."""
    return f"{row[share]:.3f}" + (f" ± {row[error] * row[share]:.3f}" if error in row else "")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--table", action="store_true", help="only latency_budget.md, from what was measured before")
    parser.add_argument("--again", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again:
        print(*again(*options.again))
        return
    for network in () if options.table else options.networks:
        for backend in options.backends:
            with TemporaryDirectory() as cache:
                os.environ["INFOPRUNE_CACHE"] = cache
                for row in measured(network, backend, options.budgets):
                    print(row, flush=True)
                    CELLS.keep(row)
    TABLE.write_text("\n".join(table(CELLS.read().values())) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
