"""Run a row of RESULTS.md from data to record: dense baseline first where none is at hand, then cut and fine-tuning.

    python -m benchmarks.reproduce                                        # lists the rows
    python -m benchmarks.reproduce cifar10/resnet56/method_b_46
    python -m benchmarks.reproduce cifar10/resnet56/method_b_46 --control random
    python -m benchmarks.reproduce cifar10/resnet56/method_b_46 --max-minutes 30   # again and again until it is done

A row is a file below configs/reproduce, on top of every base.yaml above it. A control is the same run but for the
criterion; "dense" is the same fine-tuning of the net of which nothing is cut. Options that the parser does not know go
to ``infoprune fit``: ``--config configs/reproduce/gpu.yaml``, ``--trainer.max_epochs 40``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from infoprune.callbacks.time_slice import CHECKPOINT
from infoprune.cli import main as infoprune
from infoprune.errors import ConfigurationError, nearest

CONFIGS = Path(os.path.relpath(Path(__file__).parents[1])) / "configs" / "reproduce"
RUNS = Path("runs/reproduce")
BASE = "base.yaml"
MADE_BY = "command.txt"
"""File in a run folder: the command that makes it, but for the seed."""
DENSE = "dense"
SEED = "SEED"
"""Stands for the seed in the options below."""
CONTROLS = {
    "random": [f"--trainer.callbacks.criterion={{name: random, seed: {SEED}}}"],  # every seed draws its own filters
    "l1": ["--trainer.callbacks.criterion=l1"],
    DENSE: [f"--trainer.callbacks.{option}" for option in ("criterion=random", "allocation=uniform", "macs=1.0")],
}


def rows() -> list[str]:
    """Every row: the files of each net, and the dense baseline that the nets of a data set share."""
    found = []
    for net in sorted(path.parent for path in CONFIGS.glob(f"*/*/{BASE}")):
        shared = net.parent.glob("*.yaml")
        names = {path.stem for path in [*net.glob("*.yaml"), *shared]} - {Path(BASE).stem}
        found += [(net / name).relative_to(CONFIGS).as_posix() for name in sorted(names)]
    return found


def configs(row: str) -> list[Path]:
    """Return the files of a row in the order in which they apply; a row's own may lie in the folder above its net's."""
    if row not in rows():
        raise ConfigurationError(f"there is no row {row!r}{nearest(row, rows())}; rows: {', '.join(rows())}")
    net = (CONFIGS / row).parent
    own = next(path for path in (CONFIGS / f"{row}.yaml", net.parent / f"{Path(row).name}.yaml") if path.is_file())
    return [folder / BASE for folder in (net.parent, net)] + [own]


def baseline(row: str) -> str | None:
    """Return the row that trains the dense net of a row; None if it is one itself, or starts from public weights."""
    dense = str(Path(row).with_name(DENSE))
    return dense if dense in rows() and dense != row else None


def command(row: str, folder: Path, seed: int, control: str | None = None, extra: Sequence[str] = ()) -> list[str]:
    """Return the arguments of ``infoprune`` for a row; ``folder`` ends in row, variant and seed."""
    words = ["fit", *(f"--config={path}" for path in configs(row)), f"--seed_everything={seed}"]
    words += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder.parents[1]}"]
    words += [f"--trainer.logger.name={folder.parent.name}", f"--trainer.logger.version={folder.name}"]
    options = [option.replace(SEED, str(seed)) for option in CONTROLS.get(control or "", ())]
    return [*words, *options, *extra]


def run_folder(row: str, seed: int, control: str | None = None, runs: Path = RUNS) -> Path:
    """Where a run of a row is kept."""
    return runs / row / (control or "row") / f"seed_{seed}"


def made_by(row: str, control: str | None, weights: Path | None, extra: Sequence[str]) -> str:
    """Return the command that makes a run, but for the seed."""
    words = ["python", "-m", "benchmarks.reproduce", row]
    words += ["--control", control] if control else []
    words += ["--weights", str(weights)] if weights else []
    return shlex.join([*words, *extra])


def is_done(folder: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    return (folder / "record.json").is_file()


def resumption(folder: Path) -> list[str]:
    """Let a run go on from its newest checkpoint, if it has one; the metrics so far are kept aside."""
    saved = [path for path in (folder / CHECKPOINT, folder / "checkpoints" / "last.ckpt") if path.is_file()]
    if not saved:
        return []
    metrics = folder / "metrics.csv"
    if metrics.is_file() and rank_zero_only.rank == 0:  # the logger would start it anew
        metrics.rename(folder / f"metrics_{len(list(folder.glob('metrics_*.csv'))) + 1}.csv")
    return [f"--ckpt_path={max(saved, key=lambda path: path.stat().st_mtime)}"]


def slice_of(deadline: float | None) -> list[str]:
    """Let a run stop at a time, if there is one."""
    if deadline is None:
        return []
    minutes = max((deadline - time.monotonic()) / 60, 0.001)  # one step at least
    return ["--trainer.callbacks+=TimeSlice", f"--trainer.callbacks.minutes={minutes:.3f}"]


def reproduce(
    row: str,
    seed: int = 42,
    control: str | None = None,
    weights: Path | None = None,
    runs: Path = RUNS,
    deadline: float | None = None,
    extra: Sequence[str] = (),
) -> bool:
    """Start a row, or go on with it.

    Args:
        row: its path below configs/reproduce, without ``.yaml``.
        seed: of everything, the baseline's training included.
        control: a key of `CONTROLS` instead of the row's own criterion.
        weights: of the trained dense net; None: train it first, unless the row starts from public weights.
        runs: where run folders are kept.
        deadline: stop at this time of ``time.monotonic()``.
        extra: further options for ``infoprune fit``.

    Returns:
        Whether it is done.
    """
    folder = run_folder(row, seed, control, runs)
    if is_done(folder):
        print(f"{folder} is done")
        return True
    start = weights
    dense = baseline(row)
    if start is None and dense is not None:
        if not reproduce(dense, seed, None, None, runs, deadline, extra):
            return False
        start = run_folder(dense, seed, None, runs) / "checkpoints" / "last.ckpt"
    words = command(row, folder, seed, control, extra)
    words += [f"--model.init_args.init_from={start}"] if start else []
    words += [*slice_of(deadline), *resumption(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE_BY).write_text(made_by(row, control, weights, extra) + "\n", encoding="utf-8")
    if infoprune(words):
        raise SystemExit(2)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # the first process writes the record
    return is_done(folder)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("row", nargs="?", help="left out: list the rows")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--control", choices=CONTROLS)
    parser.add_argument("--weights", type=Path, help="of the trained dense net, which is then not trained first")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders are kept")
    parser.add_argument("--max-minutes", type=float, help="stop then; the same command goes on")
    options, extra = parser.parse_known_args(args)
    if options.row is None:
        print("\n".join(rows()))
        return
    deadline = time.monotonic() + 60 * options.max_minutes if options.max_minutes is not None else None
    try:
        done = reproduce(options.row, options.seed, options.control, options.weights, options.runs, deadline, extra)
    except ConfigurationError as error:
        parser.error(str(error))
    print(
        "done; python -m benchmarks.reproduced puts it into RESULTS.md"
        if done
        else "not done; the same command goes on"
    )


if __name__ == "__main__":
    main()
