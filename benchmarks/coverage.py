"""Which models of torchvision, timm and others the structure engine prunes, how far, and how exactly.

    python -m benchmarks.coverage            # all of torchvision: benchmarks/results/coverage.md
    python -m benchmarks.coverage --timm     # one or two of each of timm's modules: benchmarks/results/coverage_timm.md
    python -m benchmarks.coverage --others   # see benchmarks/zoo_others.py: benchmarks/results/coverage_others.md
    python -m benchmarks.coverage resnet18   # some: prints their rows

Every model is traced, loses half of the units of every prunable group at random, and is compared with its masked
original in float64; detectors by what their heads put out, since which boxes are chosen says little, or nothing. Costs
are compared with PyTorch's own counter, every criterion without data decides a cut once, and what is left is saved and
loaded.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.zoo_others import OTHERS
from infoprune.criteria import CRITERIA, get_criterion
from infoprune.decide import Target, decide
from infoprune.errors import ConfigurationError
from infoprune.inputs import call_model
from infoprune.structure import PruningPlan, Structure, check_plan

RESULTS = Path(__file__).parent / "results"
RESULT, TIMM, OTHER = (RESULTS / f"coverage{which}.md" for which in ("", "_timm", "_others"))
TITLES = {
    RESULT: "every torchvision model",
    TIMM: "models of all kinds in timm",
    OTHER: "models of libraries for segmentation, detection and volumes, and of transformers",
}


@dataclass(frozen=True)
class Row:
    """One model's outcome.

    Attributes:
        seconds: processor time of the trace, the first of this model.
        counter: largest relative difference between our MACs and those of ``FlopCounterMode``, before and after; a
            text where the counter fails.
        criteria: how many criteria decided a cut that the model's code follows; the names of those that failed.
        file: whether the pruned model, saved and loaded into a new one, computes the same bits.
    """

    name: str
    seconds: float
    prunable: int
    frozen: int
    macs: float
    params: float
    error: float
    counter: str
    criteria: str
    file: str

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.seconds:.2f} | {self.prunable} | {self.frozen} | {self.macs:.3f} | "
            f"{self.params:.3f} | {self.error:.0e} | {self.counter} | {self.criteria} | {self.file} |"
        )


HEADER = (
    "| model | trace (s) | prunable groups | frozen | MACs left | parameters left | error | MACs by FlopCounterMode | "
    "criteria | saved and loaded |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
EVERY = 3
"""Criteria that need data are tried on one classifier of so many."""
TOO_SLOW = ("shapley",)
"""What takes minutes on a network of thousands of filters, even at its fewest passes."""


def output_error(original: nn.Module, pruned: nn.Module, plan: PruningPlan, x: Any) -> float:
    """Return the largest error of any output; infinite if there is nothing to compare."""
    checked = infoprune.verify(original, pruned, plan, x)
    with torch.no_grad():
        outputs = [leaf for leaf in tree_leaves(call_model(original.eval(), x)) if isinstance(leaf, Tensor)]
    return checked.max_error if outputs and all(leaf.numel() and leaf.any() for leaf in outputs) else float("inf")


def heads_error(original: nn.Module, pruned: nn.Module, plan: PruningPlan, x: Any) -> float:
    """Return the largest error of what a detector's heads put out."""
    inner = PruningPlan(
        *({f"detector.{name}": value for name, value in part.items()} for part in (plan.removed, plan.shapes)),
        {f"detector.{name}": value for name, value in plan.attributes.items()},
        tuple(f"detector.{name}" for name in plan.caches),
    )
    return output_error(zoo.Heads(original), zoo.Heads(pruned), inner, x)


def counted_macs(model: nn.Module, x: Any) -> float:
    """Multiply-accumulates of a forward pass on one example, by PyTorch's own counter."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into the fused kernel
    try:
        # In some versions of PyTorch the counter does not know the fused attention kernel for processors.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            call_model(model.eval(), x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 2


def difference(model: nn.Module, x: Any, macs: int) -> str:
    """The relative difference between ``macs`` and what PyTorch counts, or why PyTorch cannot count."""
    try:
        counted = counted_macs(model, x)
    except Exception as error:  # the counter fails on some operators, in its own ways; the table says so
        return f"counter fails: {type(error).__name__}"
    return f"{(macs - counted) / counted:+.2%}"


def by_criteria(model: nn.Module, x: Any, structure: Structure, with_data: bool) -> str:
    """Let every criterion decide a cut of half of each group; check that the model's code runs at those widths."""
    names = [
        name for name in CRITERIA.names if name not in TOO_SLOW and (with_data or not get_criterion(name).needs_data)
    ]
    data = [(torch.cat([x, x.flip(-1)]), torch.tensor([0, 1]))] if with_data else None
    failed = {}
    for name in names:
        try:
            decision = decide(model, structure, Target(filters=0.5), name, "uniform", data)
            check_plan(model, x, structure, decision.plan)
        except ConfigurationError:
            failed[name] = "refused"
        except Exception as error:  # whatever fails here is what the table is for
            failed[name] = f"fails: {type(error).__name__}"
    done = str(len(names) - len(failed))
    return f"{done}; not {', '.join(f'{k} ({v})' for k, v in failed.items())}" if failed else done


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """Every tensor that a model puts out; of a random draw inside always the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(call_model(model.eval(), x)) if isinstance(leaf, Tensor)]


def file_round_trip(name: str, pruned: nn.Module, x: Any) -> str:
    """Save a pruned model, load the file into a new model, and compare what the two compute bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        infoprune.save(pruned, Path(folder) / "pruned.pt")
        loaded = infoprune.load(Path(folder) / "pruned.pt", zoo.build(name))
    pairs = zip(outputs(pruned, x), outputs(loaded, x), strict=True)
    return "yes" if all(torch.equal(a, b) for a, b in pairs) else "differs"


def is_classifier(model: nn.Module, x: Any) -> bool:
    """Whether one image becomes one row of class scores."""
    if not isinstance(x, Tensor):
        return False
    found = outputs(model, x)
    return len(found) == 1 and found[0].dim() == 2


def measure(name: str, with_data: bool = False) -> Row:
    """Trace, cut half of every group, verify, count, score, save and load."""
    model, x = zoo.build(name), zoo.inputs(name)
    start = time.process_time()
    structure = infoprune.trace(model, x)
    seconds = time.process_time() - start
    generator = np.random.default_rng(0)
    removed = {g.name: generator.choice(g.size, g.size // 2, replace=False).tolist() for g in structure.prunable}
    plan = structure.plan(removed)
    check_plan(model, x, structure, plan)
    criteria = by_criteria(model, x, structure, with_data and is_classifier(model, x))
    before, after = structure.cost(), structure.cost_of(plan)
    original = copy.deepcopy(model)
    infoprune.shrink(model, plan)
    macs, params = after.ratio(before)
    counter = [difference(original, x, before.macs), difference(model, x, after.macs)]
    file = file_round_trip(name, model, x)
    error = (heads_error if zoo.is_detector(name) else output_error)(original, model, plan, x)
    prunable = len(structure.prunable)
    frozen = len(structure.groups) - prunable
    agreed = " / ".join(dict.fromkeys(counter))
    return Row(name, seconds, prunable, frozen, macs, params, error, agreed, criteria, file)


def write(rows: list[Row], path: Path) -> None:
    """Write a table of all models."""
    option = {TIMM: " --timm", OTHER: " --others"}.get(path, "")
    lines = [
        f"# Structure engine: {TITLES[path]}",
        "",
        f"`python -m benchmarks.coverage{option}`, {describe()}. Half of the units of every",
        "prunable group were removed at random; `error` is the largest difference from the masked original in float64,",
        f"relative to the output{'; of detectors: what their heads put out' * (path == RESULT)}.",
        "`trace (s)` is processor time.",
        "`MACs by FlopCounterMode`: how far our count is from PyTorch's, before and after the cut. `criteria`: how",
        "many of them decided a cut that the model's code follows: all that need no data, and on one classifier of",
        f"{EVERY} those that do ({', '.join(TOO_SLOW)} apart); `batchnorm_scale` refuses networks without batch norm.",
        "`saved and loaded`: the pruned model's file, loaded into a new model, computes the same bits.",
        "Where the counts differ: PyTorch's counter does not look into `lstm`; the second stage of a detector is",
        "counted for as many boxes as the model had before the cut, and may find others after it.",
        "",
        HEADER,
        *map(str, rows),
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure the models named, or all of a library into the results folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of torchvision, or LIBRARY/NAME; left out: all")
    parser.add_argument("--timm", action="store_true", help="all of timm's that are in the table")
    parser.add_argument("--others", action="store_true", help="all of other libraries' that are in the table")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(HEADER, flush=True)
    path = TIMM if options.timm else OTHER if options.others else RESULT
    warnings.simplefilter("ignore")
    every = {TIMM: zoo.TIMM, OTHER: list(OTHERS)}.get(path) or zoo.names()
    for name in options.names or every:
        rows.append(measure(name, with_data=name not in every or every.index(name) % EVERY == 0))
        print(rows[-1], flush=True)
    if not options.names:
        write(rows, path)


if __name__ == "__main__":
    main()
