"""Speed of a whole pruning call against Torch-Pruning, in one process on the same models and inputs.

    make bench-structure                          # all torchvision classifiers
    python -m benchmarks.structure resnet18 vgg16 # some of them

A call is: find the structure, score by L1, choose half of every group, shrink. Torch-Pruning does the same with
`MagnitudeImportance(p=1)` at a ratio of 0.5, the classifier's outputs kept. Neither proves the cut; by default `prune`
runs the example inputs through both models before it cuts, and what that adds to a call is in the column "proof", in
whole forward passes in brackets. The floor is copying the surviving weights
once. Each call gets a fresh copy of the model; the two take turns, and the median counts. Times are processor time of
one thread, in which other programs on the machine show less, if not in how fast a core is: tracing, of which nothing is
compared, is the fastest of six. The error is that of `benchmarks/results/coverage.md`:
outputs of a model that lost half of every group at random against the masked original's, in float64.
"""

from __future__ import annotations

import copy
import gc
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from infoprune.allocation import Uniform, select
from infoprune.criteria import get_criterion

RESULT = Path(__file__).parent / "results" / "structure.md"
REPEATS = 3
SHORT_S, SHORT_REPEATS = 0.3, 11  # calls below that take so little that one hiccup of the machine outweighs two others
CUTS = 7
FRESH = 5
LIMIT_S = 60
MEMORY = ("resnet50", "vgg16", "convnext_large", "regnet_y_128gf", "vit_l_16", "vit_h_14")
MEMORY_TEXT = """\
Of a large model one tensor at a time is taken apart; what went is kept until the end, so that a failure leaves the
model as it was. The aim: at most the largest tensor and 200 MB (191 MiB) more than the model. In MiB; each row is three
processes, at the peak their median and range: code of the libraries that is read for the first time counts too."""
FIRST = ("resnet50", "vgg16", "convnext_large", "regnet_y_128gf")
FIRST_TEXT = """\
Above, one process cuts models of all sizes again and again, and both the cut and the floor find memory that the process
holds already. Most programs prune one model: here each row is five processes that trace, score and choose, then cut
and copy what is left, and that six times more; medians, and the range over the processes."""
SCALING = ("resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201")


def ours(model: nn.Module, x: Tensor) -> None:
    """Shrink every group by half."""
    infoprune.prune(model, x, "l1", filters=0.5, round_to=1, verify=False)


def proven(model: nn.Module, x: Tensor) -> None:
    """Do the same with the proof, as by default."""
    infoprune.prune(model, x, "l1", filters=0.5, round_to=1)


def forward_pass(model: nn.Module, x: Tensor) -> float:
    """Time one forward pass."""
    start = time.process_time()
    with torch.no_grad():
        model.eval()(x)
    return time.process_time() - start


def theirs(model: nn.Module, x: Tensor) -> None:
    """Do the same with Torch-Pruning."""
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    outputs += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1000]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=outputs,
    )
    pruner.step()


def seconds(call: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    """Time one call on a copy of a model."""
    fresh = copy.deepcopy(model)
    gc.collect()
    start = time.process_time()
    call(fresh, x)
    return time.process_time() - start


def tracing_alone(model: nn.Module, x: Tensor) -> float:
    """Time to find the structure."""
    start = time.process_time()
    infoprune.trace(model, x)
    return time.process_time() - start


def floor(shrunk: nn.Module) -> float:
    """Time to copy what survives once; as with a cut, all of it is there in the end."""
    start = time.process_time()
    copies = [tensor.clone() for tensor in shrunk.state_dict().values()]
    elapsed = time.process_time() - start
    del copies
    return elapsed


def surgery(model: nn.Module, plan: infoprune.PruningPlan) -> float:
    """Time of the cut alone."""
    fresh = copy.deepcopy(model)
    gc.collect()
    start = time.process_time()
    replaced = infoprune.shrink(fresh, plan)
    elapsed = time.process_time() - start
    del replaced
    return elapsed


def memory(key: str) -> float:
    """Return a figure of this process in MiB: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10


def extra_memory(name: str) -> str:
    """MiB of a model, its largest tensor and what is left, and what a call takes beyond it; for a new process."""
    infoprune.prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(1, 4), "l1", filters=0.5)  # imports
    model, x = zoo.build(name), zoo.inputs(name)
    sizes = [p.numel() * p.element_size() / 2**20 for p in model.parameters()]
    gc.collect()
    time.sleep(1)  # what was freed is given back late
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = memory("VmRSS")
    infoprune.prune(model, x, "l1", filters=0.5, verify=False)
    extra = memory("VmHWM") - before
    left = sum(p.numel() * p.element_size() / 2**20 for p in model.parameters())
    return f"{sum(sizes)} {max(sizes)} {left} {extra}"


def memory_table() -> list[str]:
    """Peak memory of a call for models of several kinds, each in a process of its own."""
    rows = ["| model | whole | largest tensor | what is left | extra at the peak |", "|---|---|---|---|---|"]
    for name in MEMORY:
        figures = [list(map(float, alone(extra_memory, name).split())) for _ in range(REPEATS)]
        *sizes, _ = figures[0]
        peaks = sorted(figure[-1] for figure in figures)
        spread = f"{statistics.median(peaks):.0f} ({peaks[0]:.0f} to {peaks[-1]:.0f})"
        rows.append(f"| {name} | " + " | ".join(f"{size:.0f}" for size in sizes) + f" | {spread} |")
    return rows


def alone(figure: Callable[[str], Any], name: str) -> str:
    """Return a figure of a model, taken in a process of its own."""
    code = f"from benchmarks.structure import {figure.__name__}; print({figure.__name__}({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def first_cut(name: str) -> str:
    """Milliseconds of cuts, from the first of a process on, and of copying what each leaves; for a new process."""
    torch.set_num_threads(1)
    model, x = zoo.build(name), zoo.inputs(name)
    structure = infoprune.trace(model, x)
    widths = Uniform().widths(structure, amount=0.5)
    plan = select(structure, get_criterion("l1")(model, structure), widths)
    pairs = []
    for _ in range(CUTS):
        fresh = copy.deepcopy(model)
        gc.collect()
        start = time.process_time()
        replaced = infoprune.shrink(fresh, plan)  # what goes is held, as a fit holds it for its optimizers
        elapsed = time.process_time() - start
        pairs.append((elapsed, floor(fresh)))
        del replaced, fresh
    return " ".join(f"{1000 * seconds:.1f}" for pair in pairs for seconds in pair)


def first_table() -> list[str]:
    """Measure the cut against its floor in fresh processes: the first time, and again."""
    rows = [
        "| model | first cut (ms) | floor (ms) | first cut to floor | later cuts to floor |",
        "|---|---|---|---|---|",
    ]
    for name in FIRST:
        figures = [list(map(float, alone(first_cut, name).split())) for _ in range(FRESH)]
        cuts, floors = zip(*(figure[:2] for figure in figures), strict=True)
        first = [cut / copied for cut, copied in zip(cuts, floors, strict=True)]
        later = [statistics.median(a / b for a, b in zip(f[2::2], f[3::2], strict=True)) for f in figures]
        rows.append(
            f"| {name} | {statistics.median(cuts):.1f} | {statistics.median(floors):.1f} | "
            f"{with_range(first)} | {with_range(later)} |"
        )
    return rows


def with_range(ratios: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"


class TooLong(Exception):
    """A call passed the limit."""


def limited(call: Callable[[], float]) -> tuple[float | None, str]:
    """Return the seconds a call took, or None and why it did not end well."""

    def stop(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        return call(), ""
    except TooLong:
        return None, f"over {LIMIT_S} s"
    except Exception as error:  # the peer's failures are results
        return None, type(error).__name__
    finally:
        signal.alarm(0)


def runs_after(call: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> str:
    """Whether a pruned model still runs."""
    fresh = copy.deepcopy(model)
    call(fresh, x)
    try:
        with torch.no_grad():
            fresh.eval()(x)
    except (RuntimeError, IndexError, TypeError, AssertionError) as error:
        return f"forward fails: {type(error).__name__}"
    return "runs"


def row(name: str) -> dict[str, Any]:
    """Measure one model."""
    model, x = zoo.build(name), zoo.inputs(name)
    shrunk = copy.deepcopy(model)
    plan = infoprune.prune(shrunk, x, "l1", filters=0.5, round_to=1).plan
    mine, peers, reason = [], [], ""
    proofs, passes = [], []
    tracing = []
    while len(mine) < (SHORT_REPEATS if max(mine, default=0) < SHORT_S else REPEATS):
        mine.append(seconds(ours, model, x))
        proofs.append(seconds(proven, model, x) - mine[-1])
        passes.append(forward_pass(model, x))
        if len(tracing) < 2 * REPEATS:
            tracing += [tracing_alone(model, x) for _ in range(2)]
        if not reason:
            peer, reason = limited(lambda: seconds(theirs, model, x))
            peers += [] if peer is None else [peer]
    floors, cuts = zip(*((floor(shrunk), surgery(model, plan)) for _ in range(CUTS)), strict=True)
    state = reason or runs_after(theirs, model, x)
    peer_median = statistics.median(peers) if peers and not reason else None
    return {
        "name": name,
        "ours": statistics.median(mine),
        "trace": min(tracing),
        "operators": len(infoprune.trace(model, x).records),
        "theirs": peer_median,
        "proof": statistics.median(proofs),
        "passes": statistics.median(proofs) / statistics.median(passes),
        "floor": statistics.median(floors),
        "surgery": statistics.median(cuts),
        "error": known_errors().get(name, "-"),
        "state": state,
    }


def known_errors() -> dict[str, str]:
    """How exact our shrunk models are, by name, from the table of coverage."""
    lines = (RESULT.parent / "coverage.md").read_text().splitlines()
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| "))
    return {row[0]: row[6] for row in cells}


def format_row(r: dict[str, Any]) -> str:
    """One line of the table."""
    peer = "-" if r["theirs"] is None else f"{r['theirs']:.3f}"
    ratio = "-" if r["theirs"] is None else f"{r['theirs'] / r['ours']:.1f}x"
    proof = f"+{r['proof'] / r['ours']:.0%} ({r['passes']:.1f})"
    return (
        f"| {r['name']} | {r['trace']:.3f} | {r['ours']:.3f} | {peer} | {ratio} | {proof} | "
        f"{r['ours'] / r['floor']:.1f}x | {r['surgery'] / r['floor']:.1f}x | {r['error']} | {r['state']} |"
    )


HEADER = (
    "| model | trace (s) | call (s) | Torch-Pruning (s) | ratio | proof | call to floor | surgery to floor | "
    "error | Torch-Pruning's model |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def scaling(rows: list[dict[str, Any]]) -> list[str]:
    """How tracing grows with the number of operators."""
    chosen = {r["name"]: r for r in rows if r["name"] in SCALING}
    return [
        "| model | operators | trace (s) | ms an operator |",
        "|---|---|---|---|",
        *(
            f"| {n} | {r['operators']} | {r['trace']:.3f} | {1000 * r['trace'] / r['operators']:.2f} |"
            for n, r in ((n, chosen[n]) for n in SCALING if n in chosen)
        ),
    ]


def main(names: list[str]) -> None:
    """Measure, print rows as they come, and write the table when all classifiers were run."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    print(HEADER, flush=True)
    for name in names or zoo.names("classification"):
        rows.append(row(name))
        print(format_row(rows[-1]), flush=True)
    ratios = [r["theirs"] / r["ours"] for r in rows if r["theirs"] is not None]
    summary = f"{len(rows)} models, traced in {max(r['trace'] for r in rows):.2f} s at most."
    summary += f" The proof takes {statistics.median(r['passes'] for r in rows):.1f} forward passes (median)."
    if ratios:
        summary += (
            f" Both finish on {len(ratios)}: ratio median {statistics.median(ratios):.1f}, smallest {min(ratios):.1f}, "
            f"largest {max(ratios):.1f}."
        )
    print(summary)
    if not names:
        head = [
            "# Structure engine against Torch-Pruning",
            "",
            f"`make bench-structure`, {describe()}, torch-pruning {torch_pruning.__version__}. {summary}",
            "",
            __doc__.partition("\n\n")[2].partition("\n\n")[2].strip(),
            "",
        ]
        table = [HEADER, *map(format_row, rows)]
        RESULT.parent.mkdir(exist_ok=True)
        growth = ["", "## Growth with the number of operators", "", *scaling(rows)]
        first = ["", "## The first cut of a process", "", FIRST_TEXT, "", *first_table()]
        peaks = ["", "## Memory", "", MEMORY_TEXT, "", *memory_table()]
        RESULT.write_text("\n".join([*head, *table, *growth, *first, *peaks]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
