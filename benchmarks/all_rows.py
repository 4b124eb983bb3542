"""Run the CIFAR ResNets' rows, controls and seeds side by side on one GPU, and print the table last.

    python -m benchmarks.all_rows --weights resnet56=resnet56.pt                    # 80 epochs, three seeds
    python -m benchmarks.all_rows --weights resnet56=resnet56.pt --epochs 300 --at-once 8
    python -m benchmarks.all_rows --nets resnet56 --max-minutes 9                   # again and again until all is done

A net without weights gets a dense one of every seed first. Each run is a process of `benchmarks.reproduce` with a log
beside its run folder and a checkpoint of every epoch's end: the same command goes on with what was stopped. A run that
fails does not stop the others; the command then ends with 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reproduced
from benchmarks.reproduce import CONFIGS, DENSE, RUNS, is_done, run_folder

ROWS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "resnet56": (
        ("method_b_46", "l1"),
        ("method_b_46", None),
        ("method_a_46", None),
        ("method_b_46", DENSE),
        ("information_loss_46", None),
        ("information_loss_60", None),
        ("method_b_46", "random"),
        ("method_b_46_own_widths", None),
    ),
    "resnet110": (
        ("method_a_72", "l1"),
        ("method_a_72", None),
        ("method_b_72", None),
        ("method_a_72", DENSE),
        ("information_loss_72", None),
        ("method_a_72", "random"),
    ),
}
"""Net -> its rows, each with a control or None, the most valuable first."""
SEEDS = (42, 43, 44)
RECIPE = ("epochs_80.yaml", "gpu.yaml")
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """One run of `benchmarks.reproduce`."""

    row: str
    control: str | None
    seed: int
    weights: Path | None = None

    def is_ready(self, runs: Path) -> bool:
        """Whether the dense net that it starts from is at hand; two runs must not train it at once."""
        dense = str(Path(self.row).with_name(DENSE))
        return self.row == dense or self.weights is not None or is_done(run_folder(dense, self.seed, None, runs))

    def command(self, runs: Path, extra: Sequence[str]) -> list[str]:
        """Return the command that makes this row."""
        words = [sys.executable, "-m", "benchmarks.reproduce", self.row, "--seed", str(self.seed), "--runs", str(runs)]
        words += ["--control", self.control] if self.control else []
        words += ["--weights", str(self.weights)] if self.weights else []
        return [*words, *extra]


def jobs(nets: Sequence[str], seeds: Sequence[int], weights: dict[str, Path]) -> tuple[list[Job], list[Job]]:
    """Return the dense nets that have to be trained, and all rows that start from them or from weights at hand."""
    first = [Job(f"cifar10/{net}/{DENSE}", None, seed) for net in nets if net not in weights for seed in seeds]
    then = [
        Job(f"cifar10/{net}/{row}", control, seed, weights.get(net))
        for seed in seeds
        for net in nets
        for row, control in ROWS[net]
    ]
    return first, then


def run(todo: Sequence[Job], at_once: int, runs: Path, extra: Sequence[str]) -> list[Job]:
    """Run jobs, so many side by side; returns those that failed."""
    waiting = [job for job in todo if not is_done(run_folder(job.row, job.seed, job.control, runs))]
    threads = str(max((os.cpu_count() or 1) // at_once, 1))
    working: dict[subprocess.Popen[bytes], Job] = {}
    failed = []
    while waiting or working:
        while waiting and len(working) < at_once:
            job = waiting.pop(0)
            folder = run_folder(job.row, job.seed, job.control, runs)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with folder.with_suffix(".log").open("ab") as log:
                process = subprocess.Popen(
                    job.command(runs, extra), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads}
                )
            working[process] = job
        time.sleep(POLL_S)
        for process in [process for process in working if process.poll() is not None]:
            job = working.pop(process)
            failed += [job] if process.returncode else []
            state = f"failed with {process.returncode}" if process.returncode else "ended"
            print(f"{job.row}, {job.control or 'row'}, seed {job.seed}: {state}; {len(waiting)} wait", flush=True)
    return failed


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nets", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--weights", nargs="*", default=[], metavar="NET=FILE", help="of trained dense nets")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--at-once", type=int, default=6, help="runs side by side")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders are kept")
    parser.add_argument("--max-minutes", type=float, help="stop every run then; the same command goes on")
    options, rest = parser.parse_known_args(args)
    weights = {net: Path(file) for net, _, file in (entry.partition("=") for entry in options.weights)}
    extra = [f"--config={CONFIGS / name}" for name in RECIPE] + [f"--trainer.max_epochs={options.epochs}"]
    extra += ["--trainer.enable_progress_bar=false", *rest]
    deadline = None if options.max_minutes is None else time.monotonic() + 60 * options.max_minutes
    failed: list[Job] = []
    for phase in jobs(options.nets, options.seeds, weights):
        left = [] if deadline is None else [f"--max-minutes={max(deadline - time.monotonic(), 0) / 60:.3f}"]
        ready = [job for job in phase if job.is_ready(options.runs)]
        failed += run(ready, options.at_once, options.runs, [*left, *extra])
    reproduced.collect(options.runs)
    runs = [run for run in reproduced.read() if run.training.startswith(f"{options.epochs} epochs")]
    print("\n".join([reproduced.TABLE_HEAD, *(reproduced.line(group) for group in reproduced.alike(runs))]))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
