"""The papers' rows: their configs, their widths to the digit, the runner with its slices, and RESULTS.md."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import reproduce, reproduced
from benchmarks.data_loading import write_random_cifar
from infoprune.callbacks import FilterPruning, time_slice
from infoprune.commands.training import parsers
from infoprune.errors import ConfigurationError
from infoprune.models import ImageClassifier
from infoprune.report.collect import layer_rows
from infoprune.report.record import LayerRow, RunRecord, Totals
from infoprune.structure import trace
from tests.tiers import slow

ROOT = Path(__file__).resolve().parents[1]
# row -> percent that goes of the FLOPs by our count, of the FLOPs as the papers' lineage counts, and of the parameters
CUTS = {
    "cifar10/resnet56/method_b_46": (45.71, 45.06, 40.35),
    "cifar10/resnet56/method_b_47": (48.05, 47.4, 42.8),
    "cifar10/resnet20/method_a_45": (45.45, 44.73, 40.25),  # no paper's
    "cifar10/resnet110/method_a_72": (72.38, 71.9, 69.4),
    "cifar10/vgg16/method_a_58": (58.35, 58.19, 81.55),
    "cifar10/vgg16/method_a_67": (66.74, 66.60, 83.29),
    "cifar10/vgg16/method_a_79": (78.78, 78.66, 87.31),
    "imagenet/resnet50/method_a_v1": (76.93, 76.65, 68.63),
    "imagenet/resnet50/method_a_v2": (77.71, 77.42, 69.30),
    "imagenet/resnet50/method_b": (41.66, 41.18, 35.02),
}
# MACs in millions as the papers' code prints them, unpruned and pruned, and parameters in millions
PRINTED = {
    "cifar10/vgg16/method_a_58": (313.74, 131.17, 2.767),
    "cifar10/vgg16/method_a_67": (313.74, 104.78, 2.506),
    "cifar10/vgg16/method_a_79": (313.74, 66.95, 1.902),
    "imagenet/resnet50/method_a_v1": (4089.18, 954.86, 8.018),
    "imagenet/resnet50/method_a_v2": (4089.18, 923.18, 7.846),
}
CIFAR10 = [row for row in reproduce.rows() if row.startswith("cifar10")]
QUICK = [*PRINTED, "cifar10/resnet56/method_b_46", "cifar10/resnet110/method_a_72"]
ONE_A_NETWORK = {row.split("/")[1]: row for row in CIFAR10}.values()
SAME_WIDTHS = [row for row in reproduce.rows() if "method_a" in row and row.startswith("cifar10")]


@functools.cache
def parser() -> Any:
    return parsers()["fit"]


@functools.cache
def read(row: str, control: str | None, extra: Sequence[str]) -> Any:
    words = reproduce.command(row, reproduce.run_folder(row, 1, control), 1, control, extra)[1:]
    return parser().parse_args([*words, "--trainer.accelerator=cpu"])


def parsed(row: str, control: str | None = None, extra: Sequence[str] = ()) -> Any:
    """The configuration of a row, as the command reads it."""
    config = copy.deepcopy(read(row, control, tuple(extra)))
    if row.startswith("imagenet"):
        config.model.init_args.model.init_args.weights = None  # they would be downloaded
    return config


def parts(config: Any) -> tuple[ImageClassifier, FilterPruning]:
    """The module and the pruning callback that a configuration makes."""
    made = parser().instantiate_classes(config)
    (pruning,) = [callback for callback in made.trainer.callbacks if isinstance(callback, FilterPruning)]
    return made.model, pruning


@functools.cache
def after(row: str, control: str | None = None) -> tuple[list[LayerRow], float, int]:
    """Every layer before and after the cut, the share of the parameters that goes, and how many there are."""
    module, pruning = parts(parsed(row, control))
    given = pruning._engine.options
    structure = trace(module.model.eval(), module.example_input_array, frozen=given.frozen)
    widths = given.allocation.widths(structure, None, given.target.budget)
    plan = structure.plan({name: range(kept, structure.group(name).size) for name, kept in widths.items()})
    whole = sum(parameter.numel() for parameter in module.model.parameters())
    return layer_rows(structure, plan), 1 - structure.cost_of(plan).params / structure.cost().params, whole


@pytest.mark.parametrize("row", [row if row in QUICK[::3] else slow(row) for row in CUTS])
def test_the_widths_are_those_that_the_papers_figures_ask_for(row: str) -> None:
    layers, params, _ = after(row)
    record = RunRecord("net", "l1", Totals(0, 0), Totals(0, 0), layers=layers)
    ours = 1 - sum(layer.macs_after for layer in layers) / sum(layer.macs_before for layer in layers)
    for share, percent in zip((ours, reproduced.lineage_cut(record), params), CUTS[row], strict=True):
        digits = len(str(percent).partition(".")[2])
        assert round(100 * share, digits) == percent
    if row in PRINTED:
        before, pruned, _ = PRINTED[row]
        counted = [round(reproduced.lineage_macs(layers, when) / 1e6, 2) for when in ("before", "after")]
        assert counted == [before, pruned]


@pytest.mark.parametrize("row", PRINTED)
def test_the_parameters_are_those_that_the_papers_code_prints(row: str) -> None:
    _, share, whole = after(row)
    assert round((1 - share) * whole / 1e6, 3) == PRINTED[row][2]


def test_every_row_is_read_and_prunes_before_the_first_epoch() -> None:
    for row in reproduce.rows():
        config = parsed(row)
        (pruning,) = [entry for entry in config.trainer.callbacks if entry.class_path.endswith("FilterPruning")]
        assert pruning.init_args.schedule == [0]
        assert config.trainer.callbacks[-1] is pruning, "options for the last callback have to mean this one"
        if not row.endswith(reproduce.DENSE):
            assert config.model.init_args.optimizer.init_args.nesterov is False, "the lineage's recipe has none"


@pytest.mark.parametrize("row", SAME_WIDTHS)
def test_both_methods_have_a_row_at_the_same_widths(row: str) -> None:
    other = row.replace("method_a", "method_b")
    first, second = (parsed(name).trainer.callbacks[-1].init_args for name in (row, other))
    assert first.allocation == second.allocation
    assert (first.criterion, second.criterion["name"]) == ("capacity_independence", "shapley")


@pytest.mark.parametrize("control", reproduce.CONTROLS)
def test_a_control_differs_in_nothing_but_what_is_cut(control: str) -> None:
    row = "cifar10/resnet56/method_b_46"
    ours, theirs = parsed(row), parsed(row, control)
    cut, other = (config.trainer.callbacks.pop().init_args.as_dict() for config in (ours, theirs))
    for config in (ours, theirs):
        del config["config"], config["trainer"]["logger"]
    assert ours == theirs
    differs = {name for name in cut if cut[name] != other[name]}
    assert differs == ({"criterion", "allocation", "macs"} if control == "dense" else {"criterion"})


def test_every_seed_of_the_random_control_draws_its_own_filters() -> None:
    row, drawn = "cifar10/resnet56/method_b_46", []
    for seed in (42, 43):
        words = reproduce.command(row, reproduce.run_folder(row, seed, "random"), seed, "random")[1:]
        drawn.append(
            parser().parse_args([*words, "--trainer.accelerator=cpu"]).trainer.callbacks[-1].init_args.criterion
        )
    assert drawn == [{"name": "random", "seed": 42}, {"name": "random", "seed": 43}]


@pytest.mark.parametrize(
    "row", [row if row in ONE_A_NETWORK else pytest.param(row, marks=pytest.mark.slow) for row in CIFAR10]
)
def test_the_short_schedule_changes_nothing_but_lengths(row: str) -> None:
    whole = parsed(row)
    short = parsed(row, extra=[f"--config={reproduce.CONFIGS / 'short.yaml'}"])
    assert (short.trainer.max_epochs, short.data.init_args.batch_size) == (4, 128)
    assert short.model.init_args.scheduler.init_args.warmup_epochs == 0.5
    for config in (whole, short):
        del config["config"], config["trainer"]["max_epochs"], config["data"]["init_args"]["batch_size"]
        del config["model"]["init_args"]["scheduler"]["init_args"]["warmup_epochs"]
    assert short == whole


def test_the_dense_control_loses_nothing() -> None:
    layers, params, _ = after("cifar10/resnet56/method_b_46", "dense")
    assert params == 0
    assert all(layer.channels_before == layer.channels_after for layer in layers)


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no row 'cifar10/resnet56/method_c_46', did you mean"):
        reproduce.configs("cifar10/resnet56/method_c_46")


def test_make_hands_its_variables_on() -> None:
    words = [
        "ROW=cifar10/vgg16/dense",
        "CONTROL=l1",
        "SEED=7",
        "MINUTES=5",
        "WEIGHTS=w.pt",
        "ARGS=--trainer.max_epochs=1",
    ]
    done = subprocess.run(["make", "-n", "reproduce", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    options = "--control l1 --seed 7 --max-minutes 5 --weights w.pt --trainer.max_epochs=1"
    assert f"-m benchmarks.reproduce cifar10/vgg16/dense {options}" in " ".join(done.stdout.split())


def test_results_are_what_the_kept_summaries_say() -> None:
    text = reproduced.RESULTS.read_text(encoding="utf-8")
    assert text == reproduced.page(reproduced.read()), "run python -m benchmarks.reproduced"
    for row in reproduce.rows():
        assert f"- `make reproduce ROW={row}`" in text


CONFIG = "{trainer: {max_epochs: 3}, data: {init_args: {batch_size: 8}}, model: {init_args: {}}}"


def finished(folder: Path, seed: int, after: float, config: str = CONFIG) -> None:
    """What a finished run leaves behind, as far as its summary needs it."""
    folder.mkdir(parents=True)
    record = RunRecord("net", "l1", Totals(3600, 10), Totals(1800, 6), seed=seed, config=config)
    record.before.metrics, record.after.metrics = {"test/acc": 0.9}, {"test/acc": after}
    record.layers = [LayerRow("conv", "conv", "conv", 4, 2, 36, 18, 3600, 1800)]
    record.history = [{"epoch": 0, "val/acc": 0.5}, {"epoch": 1, "train/loss": 1.0}, {"epoch": 2, "val/acc": after}]
    record.save(folder / "record.json")
    (folder / reproduce.MADE_BY).write_text("make it\n")


def test_a_finished_run_is_kept_as_one_line_that_a_later_one_replaces(tmp_path: Path) -> None:
    kept, runs = tmp_path / "kept.jsonl", tmp_path / "runs"
    finished(runs / "net" / "l1" / "seed_1", 1, 0.8)
    finished(runs / "net" / "l1" / "seed_2", 2, 0.7)
    reproduced.collect(runs, kept)
    finished(tmp_path / "again" / "net" / "l1" / "seed_2", 2, 0.75)
    finished(tmp_path / "again" / "net" / "l1" / "longer", 2, 0.85, CONFIG.replace("epochs: 3", "epochs: 9"))
    reproduced.collect(tmp_path / "again", kept)
    found = {(run.seed, run.training): run for run in reproduced.read(kept)}
    assert {key: run.after for key, run in found.items()} == {
        (1, "3 epochs, batch 8"): 80.0,
        (2, "3 epochs, batch 8"): 75.0,
        (2, "9 epochs, batch 8"): 85.0,
    }
    run = found[1, "3 epochs, batch 8"]
    assert (run.row, run.variant, run.criterion, run.start, run.made_by) == ("net", "l1", "l1", "scratch", "make it")
    assert (run.before, run.curve, run.macs, run.params) == (90.0, [50.0, 80.0], 0.5, 0.4)


def test_the_command_of_a_run_is_noted_without_seed_and_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reproduce, "infoprune", lambda words: 0)
    options = ["--control=l1", "--seed=7", "--max-minutes=5", "--weights=w.pt", f"--runs={tmp_path}"]
    reproduce.main([(row := "cifar10/resnet56/method_b_46"), *options, "--data.init_args.mean=[0.5, 0.4, 0.4]"])
    noted = (reproduce.run_folder(row, 7, "l1", tmp_path) / reproduce.MADE_BY).read_text(encoding="utf-8")
    words = ["python", "-m", "benchmarks.reproduce", row, "--control", "l1", "--weights", "w.pt"]
    assert shlex.split(noted) == [*words, "--data.init_args.mean=[0.5, 0.4, 0.4]"]


def test_how_long_a_run_trained_is_told_with_its_precision() -> None:
    config = {"trainer": {"max_epochs": 1, "precision": "bf16-mixed"}, "data": {"init_args": {"batch_size": 8}}}
    assert reproduced.training(config) == "1 epoch, batch 8, bf16-mixed"
    config["trainer"]["limit_train_batches"] = 0.5
    assert reproduced.training(config) == "1 epoch × 50%, batch 8, bf16-mixed"


def runs_of_both_methods() -> list[reproduced.Run]:
    """A method with two seeds, the other method, and a dense control of the same training; a row alone."""
    shared: dict[str, Any] = {"start": "a.pt", "before": 90.0, "curve": [80.0], "device": "cpu"}
    cut = {**shared, "macs": 0.46, "params": 0.4, "lineage": 0.45, "training": "3 epochs, batch 8"}
    dense = {**cut, "macs": 0.0, "params": 0.0, "lineage": 0.0}
    row = "cifar10/resnet56/method_b_46"
    return [
        reproduced.Run(row, "row", 42, "shapley", after=89.0, made_by="make b", **cut),
        reproduced.Run(row, "row", 43, "shapley", after=90.0, made_by="make b", **cut),
        reproduced.Run(row.replace("_b_", "_a_"), "row", 42, "l1", after=88.0, made_by="make a", **cut),
        reproduced.Run(row, "dense", 42, "random", after=90.5, made_by="make dense", **dense),
        reproduced.Run(row, "l1", 42, "l1", after=89.5, made_by="longer", **{**cut, "training": "9 epochs, batch 8"}),
    ]


def test_runs_with_a_dense_control_of_the_same_training_come_first() -> None:
    text = reproduced.page(runs_of_both_methods())
    first, others = text.split("<details>")
    net = "| cifar10/resnet56 | "
    assert (
        net + "**method_b_46** (shapley) | 42, 43 | 3 epochs, batch 8 | a.pt | 90.00 ± 0.00 | 89.50 ± 0.71 |" in first
    )
    assert net + "dense | 42 | 3 epochs, batch 8 | a.pt | 90.00 | 90.50 | +0.50 | 0 | 0 | 0 |" in first
    assert first.index("method_a_46** (l1)") < first.index("method_b_46** (shapley)") < first.index("| dense |")
    assert "```bash\nmake a\nmake b\nmake dense\n```" in first
    assert (
        net + "l1 | 42 | 9 epochs, batch 8 | a.pt | 90.00 | 89.50 | −0.50 | −46.00 % | −40.00 % | −45.00 % |" in others
    )
    assert "- `make reproduce ROW=cifar10/resnet56/method_b_46`\n" in text
    assert "- `make reproduce ROW=cifar10/vgg16/dense`: not run yet\n" in text


def test_the_picture_shows_the_accuracy_of_every_run_that_can_be_judged(tmp_path: Path) -> None:
    reproduced.draw(runs_of_both_methods(), tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert all(name in text for name in ("method_a_46", "method_b_46", "dense", "unpruned", "3 epochs, batch 8"))
    assert "9 epochs" not in text


SMALL = {
    "model.init_args.model.init_args.depth": 8,
    "model.init_args.scheduler.init_args.warmup_epochs": 0,
    "data.init_args.batch_size": 64,
    "data.init_args.download": "false",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "trainer.enable_progress_bar": "false",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*differ from the official")
def test_a_run_in_slices_ends_as_one_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baseline and row, cut off after every third step or so; the record agrees, the unpruned net's test too."""
    write_random_cifar(tmp_path, per_file=50)
    extra = [f"--{name}={value}" for name, value in {**SMALL, "data.init_args.root": tmp_path}.items()]
    row = "cifar10/resnet56/beyond_60"
    assert reproduce.reproduce(row, runs=tmp_path / "whole", extra=extra)

    clock = itertools.count(step=0.02)  # the shortest slice, 0.06 s, is over when the clock is read for the fourth time
    monkeypatch.setattr(time_slice, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    calls = 1
    while not reproduce.reproduce(row, runs=tmp_path / "sliced", deadline=0.0, extra=extra):
        calls += 1
        assert calls < 20
    assert calls > 3

    for name in ("cifar10/resnet56/dense", row):
        whole, sliced = (reproduce.run_folder(name, 42, runs=tmp_path / runs) for runs in ("whole", "sliced"))
        first, second = (RunRecord.load(folder / "record.json") for folder in (whole, sliced))
        assert first.before.metrics == second.before.metrics != {}
        assert first.after.metrics == second.after.metrics
        assert first.history == second.history
        states = [torch.load(folder / "pruned.pt", weights_only=True)["state_dict"] for folder in (whole, sliced)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert list(sliced.glob("metrics_*.csv"))
        assert not (sliced / "unpruned.pt").exists()


def write_folders(root: Path, images: int) -> None:
    """Two classes of random pictures in ImageNet's layout."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "left"), [("method_a_v1", 8_017_755), ("method_a_v2", 7_846_121), ("method_b", 16_607_190)]
)
def test_imagenet_runs_on_two_processes_and_resumes(row: str, left: int, tmp_path: Path) -> None:
    """The row's own command, but for the size of the pictures: DDP over gloo, cut off after an epoch, gone on with."""
    write_folders(tmp_path / "data", images=4)
    (tmp_path / "no_download.yaml").write_text("model: {init_args: {model: {init_args: {weights: null}}}}")
    small = {
        "config": tmp_path / "no_download.yaml",
        "model.init_args.scheduler.init_args.warmup_epochs": 1,
        "data.init_args.root": tmp_path / "data",
        "data.init_args.batch_size": 2,
        "data.init_args.image_size": 32,
        "data.init_args.resize_size": 36,
        "data.init_args.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.max_epochs": 2,
        "trainer.enable_progress_bar": "false",
    }
    if row == "method_b":  # one image a process, for each of which the network is run 11,000 times
        small |= {
            "trainer.callbacks.criterion": "{name: shapley, images: 2, estimator: permutation}",
            "trainer.callbacks.calibration_images": 2,
        }
    words = [f"imagenet/resnet50/{row}", f"--runs={tmp_path / 'runs'}", *(f"--{k}={v}" for k, v in small.items())]
    folder = reproduce.run_folder(f"imagenet/resnet50/{row}", 42, runs=tmp_path / "runs")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for slices in (["--max-minutes=0.001"], []):
        command = [sys.executable, "-m", "benchmarks.reproduce", *words, *slices]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=450, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (folder / "checkpoints" / "slice.ckpt").is_file()
        assert reproduce.is_done(folder) == (not slices)
        assert done.stdout.count("not done;") == (2 if slices else 0), "both processes know"
    record = RunRecord.load(folder / "record.json")
    assert record.after.params == left
    assert [entry["epoch"] for entry in record.history] == [0, 1]
    assert set(record.before.metrics) >= {"test/acc"}
