"""The commands ``benchmark``, ``compare``, ``report``, ``plot``, ``completion``: right figures, pictures, refusals."""

from __future__ import annotations

import builtins
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import infoprune
from infoprune.allocation import ALLOCATIONS
from infoprune.backends import BACKENDS
from infoprune.cli import TOOLS, main
from infoprune.commands import known_names
from infoprune.compare import compare, in_words
from infoprune.criteria import CRITERIA, L1
from infoprune.errors import ConfigurationError
from infoprune.evaluate import accuracy, output_change
from infoprune.models import CifarResNet
from infoprune.report import RunRecord
from infoprune.report.figures import of_run, pareto
from infoprune.report.side_by_side import render_pair
from infoprune.report.text import percent
from infoprune.sensitivity import sensitivity
from infoprune.speed import peak_memory, side_by_side, uniformly_narrowed
from infoprune.version import __version__
from tests.commands import NET, SHAPE, Shell
from tests.sample_record import sample_record

PNG = b"\x89PNG"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return Shell(capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``prune`` leaves."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["prune", *NET, *SHAPE, "--macs", "0.5", "--latency_repeats", "0", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(shell: Shell, finished: Path) -> Path:
    """Return a copy of that folder in the current one."""
    return Path(shutil.copytree(finished, "run"))


class Slow(nn.Module):
    """Takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.zeros(3, 5))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        start = time.process_time()  # single-threaded runs are timed in processor time, in which sleep takes none
        while time.process_time() - start < self.seconds:
            pass
        return x


class TestSpeed:
    def test_medians_ratios_and_sizes(self) -> None:
        quick, slow = Slow(0.01), Slow(0.1)
        speeds = side_by_side({"slow": slow, "quick": quick}, torch.zeros(4, 2), repeats=5, warmup=2, memory=False)
        assert 0.01 <= speeds["quick"].median < 0.1 <= speeds["slow"].median
        assert speeds["quick"].times_as_fast_as(speeds["slow"]) > 1.5
        assert speeds["quick"].throughput == pytest.approx(4 / statistics.median(speeds["quick"].seconds))
        assert (quick.calls, slow.calls) == (7, 7)
        assert speeds["slow"].weight_bytes == 3 * 5 * 4

    def test_peak_memory_is_that_of_the_widest_moment(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
        assert peak_memory(net, torch.zeros(2, 3, 4, 4)) == 4 * 2 * 16 * (8 + 2)

    def test_uniformly_narrowed_meets_the_budget_and_leaves_the_model(self) -> None:
        model, images = CifarResNet(depth=8), torch.zeros(1, 3, 16, 16)
        narrow = uniformly_narrowed(model, images, 0.4)
        whole, left = infoprune.trace(model, images).cost().macs, infoprune.trace(narrow, images).cost().macs
        assert 0.38 < left / whole <= 0.4
        assert model.layer1[0].conv1.out_channels == 16


class TestBenchmark:
    def test_three_models_at_every_batch_size(self, shell: Shell, run: Path) -> None:
        data = shell("benchmark", "--model", run, "--batch", "1", "3", "--repeats", "3", "--json").json
        rows = {(row["model"], row["batch"]): row for row in data["rows"]}
        assert set(rows) == {(name, size) for name in ("original", "pruned", "uniform") for size in (1, 3)}
        record = RunRecord.load(run / "record.json")
        assert rows["original", 1]["macs"] == record.before.macs
        assert rows["pruned", 1]["macs"] == record.after.macs
        assert rows["uniform", 1]["macs"] <= record.after.macs
        assert rows["pruned", 3]["ideal_speedup"] == pytest.approx(record.before.macs / record.after.macs)
        assert rows["original", 3]["speedup"] == 1.0
        assert rows["pruned", 3]["peak_bytes"] < rows["original", 3]["peak_bytes"]
        assert rows["pruned", 3]["weight_bytes"] < rows["original", 3]["weight_bytes"]
        assert rows["pruned", 3]["throughput"] == pytest.approx(3 / rows["pruned", 3]["median_s"])

    def test_a_class_is_cut_on_the_way(self, shell: Shell) -> None:
        ran = shell("benchmark", *NET, *SHAPE, "--filters", "0.5", "--round_to", "4", "--repeats", "2")
        assert ran.code == 0
        assert all(word in ran.out for word in ("original", "pruned", "uniform", "ideal", "activations"))

    def test_an_unpruned_model_alone(self, shell: Shell) -> None:
        assert [r["model"] for r in shell("benchmark", *NET, *SHAPE, "--repeats", "2", "--json").json["rows"]] == [
            "original"
        ]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--batch", "0"], "--batch 0 must be at least 1"),
            (["--repeats", "0"], "--repeats 0 must be at least 1"),
            (["--threads", "0"], "--threads 0 must be at least 1"),
            (["--device", "gpu"], "give cpu, cuda or cuda:1"),
            (["--device", "cuda:99"], "CUDA devices here"),
            (["--device", "meta"], "only cpu and cuda"),
        ],
    )
    def test_mistakes(self, shell: Shell, words: list[str], message: str) -> None:
        assert message in shell.refuses("benchmark", *NET, *SHAPE, *words)


class TestCompare:
    def test_each_cell_is_what_prune_would_give(self) -> None:
        torch.manual_seed(1)
        model, images = CifarResNet(depth=8).eval(), torch.randn(4, 3, 16, 16)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluate = output_change(model, images)
        rows = compare(model, images, ["l1", L1()], [0.7, 0.4], evaluate, frozen=["conv1"])
        assert [(row.criterion, row.keep) for row in rows] == [
            ("none", 1.0), ("l1", 0.7), ("l1", 0.4), ("l1", 0.7), ("l1", 0.4)
        ]  # fmt: skip
        pruned = CifarResNet(depth=8).eval()
        pruned.load_state_dict(before)
        result = infoprune.prune(pruned, images, "l1", macs=0.4, frozen=["conv1"])
        assert rows[2].figures == evaluate(pruned)
        assert (rows[2].macs, rows[2].params) == result.after.ratio(result.before)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_recalibration_changes_what_is_measured(self) -> None:
        torch.manual_seed(1)
        model, images = CifarResNet(depth=8).eval(), torch.randn(8, 3, 16, 16)
        plain, anew = (
            compare(model, images, ["l1"], [0.5], output_change(model, images), recalibration=data)[1].figures
            for data in (None, [images])
        )
        assert plain != anew

    def test_accuracy_counts_right_answers(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Identity())
        logits = torch.eye(4)[[0, 1, 2, 3, 0]]
        measured = accuracy(net, [(logits[:3], torch.tensor([0, 1, 0])), (logits[3:], torch.tensor([3, 3]))])
        assert measured["accuracy"] == 3 / 5
        assert accuracy(net, [(logits, torch.arange(5) % 4)], images=2)["accuracy"] == 1.0

    def test_sensitivity_leaves_the_model_and_measures_one_group_at_a_time(self) -> None:
        model, images = CifarResNet(depth=8).eval(), torch.randn(2, 3, 16, 16)
        structure = infoprune.trace(model, images)
        seen: list[int] = []

        def evaluate(smaller: nn.Module) -> dict[str, float]:
            seen.append(infoprune.trace(smaller, images).cost().macs)
            return {"macs": float(seen[-1])}

        figures = sensitivity(model, structure, L1()(model, structure), evaluate, (0.5,))
        assert figures == {
            group.name: {0.5: structure.cost({group.name: group.size // 2}).macs} for group in structure.prunable
        }
        assert infoprune.plan_of(model).is_empty

    def test_command_writes_a_table_a_picture_and_json(self, shell: Shell) -> None:
        pytest.importorskip("matplotlib", reason="needs the plot extra")
        words = ["compare", *NET, "--model.in_channels", "1", "--input_shape", "1,1,8,8", "--data", "DigitsDataModule"]
        words += ["--images", "64", "--test_images", "64", "--criteria", "l1", "{name: random, seed: 3}"]
        words += ["--budgets", "0.6", "--round_to", "1", "--recalibrate", "--plot", "pareto.png"]
        ran = shell(*words)
        assert ran.code == 0, ran.err
        assert "random (seed=3)" in ran.out
        assert re.search(r"60 % +(59\.9|60\.0) %", ran.out)
        assert Path("pareto.png").read_bytes()[:4] == PNG
        rows = shell(*words, "--json").json["rows"]
        assert [row["criterion"] for row in rows] == ["none", "l1", "random (seed=3)"]
        assert all(0 <= row["figures"]["accuracy"] <= 1 for row in rows)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--criteria", "l1", "l22"], "unknown criterion 'l22'"),
            (["--budgets", "1.2"], "(0, 1]"),
            (["--kind", "flops"], "'macs' or 'params'"),
            (["--plot", "pareto.bmp"], ".png"),
            (["--recalibrate"], "choose them with --data"),
            (["--criteria", "hrank"], "pass batches of training images"),
        ],
    )
    def test_mistakes(self, shell: Shell, tmp_path: Path, words: list[str], message: str) -> None:
        assert message in shell.refuses("compare", *NET, *SHAPE, *words)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(ConfigurationError, match="at least one criterion"):
            compare(CifarResNet(depth=8), torch.zeros(1, 3, 16, 16), [], [0.5], lambda model: {})
        assert in_words({"name": "l1"}) == "l1"


class TestReport:
    def test_a_page_is_written_anew(self, shell: Shell, run: Path) -> None:
        before = (run / "report.html").read_text()
        (run / "report.html").unlink()
        assert shell("report", run).code == 0
        assert (run / "report.html").read_text() == before
        assert shell("report", run / "record.json", "--out", "pages/one.html", "--json").json["out"] == "pages/one.html"
        assert Path("pages/one.html").read_text() == before

    def test_two_runs_side_by_side(self, shell: Shell, run: Path) -> None:
        record, other = sample_record(), Path("other")
        other.mkdir()
        record.save(other / "record.json")
        ran = shell("report", run, other)
        assert ran.code == 0, ran.err
        page = Path("comparison.html").read_text()
        for one in (RunRecord.load(run / "record.json"), record):
            assert f"({percent(one.after.macs / one.before.macs)})" in page
            assert all(f"<code>{row.name}</code>" in page for row in one.layers)
        assert "Their unpruned models differ" in page
        assert "<script" not in page

    def test_settings_of_the_training_that_differ_are_shown(self) -> None:
        first, second = sample_record(), sample_record()
        config = "model: Net\ntrainer:\n  callbacks:\n    class_path: my.Own\n  max_epochs: "
        first.config, second.config = f"{config}30\n", f"{config}8\n"
        page = render_pair(first, second, "first", "second")
        assert "the same options" not in page
        assert "trainer.max_epochs" in page
        assert "trainer.callbacks" not in page

    def test_of_equal_runs_no_option_is_shown(self) -> None:
        page = render_pair(sample_record(), sample_record(), "<b>", "second")
        assert "the same options" in page
        assert "&lt;b&gt;" in page

    def test_mistakes(self, shell: Shell, run: Path) -> None:
        assert "3 are given" in shell.refuses("report", run, run, run)
        assert "cannot read absent" in shell.refuses("report", "absent")


class TestPlot:
    @pytest.mark.slow
    def test_pictures_of_a_whole_run(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="needs the plot extra")
        record = sample_record(blocks=1)
        pictures = of_run(record)
        assert set(pictures) == {"widths", "heat_map", "scores_1", "scores_2", "along"}
        (bars,) = pictures["widths"].axes
        drawn = [bar.get_width() for bar in bars.patches]
        rows = record.layers[::-1]
        assert drawn == [row.channels_before for row in rows] + [row.channels_after for row in rows]
        (image,) = pictures["heat_map"].axes[0].images
        shares = image.get_array()
        assert shares[0].tolist() == [1.0, *(e.layers[0].channels_after / 16 for e in record.events)]
        upper = pictures["along"].axes[0].lines[0]
        assert list(upper.get_ydata()) == [entry["val/top1"] for entry in record.history]
        for name, picture in pictures.items():
            picture.savefig(tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 5000

    def test_pareto_draws_every_criterion(self) -> None:
        pytest.importorskip("matplotlib", reason="needs the plot extra")
        net, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 8, 8)
        rows = compare(net, images, ["l1", "random"], [0.5, 0.25], output_change(net, images))
        (ax,) = pareto(rows).axes
        lines = {line.get_label(): list(line.get_xdata()) for line in ax.lines if not line.get_label().startswith("_")}
        assert lines == {"l1": [0.25, 0.5], "random": [0.25, 0.5]}

    def test_command(self, shell: Shell, run: Path) -> None:
        pytest.importorskip("matplotlib", reason="needs the plot extra")
        assert shell("plot", "--run", run).code == 0
        assert {file.name for file in (run / "plots").iterdir()} == {"widths.png", "heat_map.png", "scores_1.png"}
        data = shell(
            "plot", "--run", run / "record.json", "--out", "o", "--format", "svg", "--only", "widths", "--json"
        )
        assert data.json["files"] == ["o/widths.svg"]
        assert "<svg" in Path("o/widths.svg").read_text()

    def test_mistakes(self, shell: Shell, run: Path) -> None:
        assert "did you mean 'widths'" in shell.refuses("plot", "--run", run, "--only", "width")
        assert "png, svg, pdf" in shell.refuses("plot", "--run", run, "--format", "gif")
        assert "cannot read absent" in shell.refuses("plot", "--run", "absent")
        record = (run / "record.json").read_text()
        (run / "record.json").write_text(
            record.replace('"format": 1', '"format": 7').replace(f'"{__version__}"', '"7.0"')
        )
        assert "written by infoprune 7.0" in shell.refuses("plot", "--run", run)
        (run / "record.json").write_text(record[: len(record) // 2])
        assert "not valid JSON" in shell.refuses("plot", "--run", run)
        assert not (run / "plots").exists()

    def test_without_matplotlib_the_way_to_it_is_told(
        self, shell: Shell, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = builtins.__import__

        def without(name: str, *args: object, **options: object) -> object:
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(builtins, "__import__", without)
        assert "pip install 'infoprune[plot]'" in shell.refuses("plot", "--run", run)


class TestCompletion:
    @pytest.mark.parametrize("name", ["bash", "zsh", "tcsh"])
    def test_knows_every_command(self, shell: Shell, name: str) -> None:
        pytest.importorskip("shtab", reason="needs the completion extra")
        script = shell("completion", name).out
        for command in (*TOOLS, "fit", "test"):
            assert command in script

    def test_bash_completes(self, shell: Shell, tmp_path: Path) -> None:
        pytest.importorskip("shtab", reason="needs the completion extra")
        (tmp_path / "script").write_text(shell("completion", "bash").out)
        asks = {"infoprune ins": "inspect", "infoprune prune --recal": "--recalibrate",
                "infoprune fit --trainer.max_e": "--trainer.max_epochs", "infoprune prune --criterion hr": "hrank",
                "infoprune prune --weights ./scr": "./script"}  # fmt: skip
        lines = ["source ./script"]
        for ask in asks:
            words = " ".join(f"'{word}'" for word in ask.split())
            lines.append(f"COMP_WORDS=({words}); COMP_CWORD={len(ask.split()) - 1}; COMPREPLY=()")
            lines.append('_shtab_infoprune; echo "${COMPREPLY[*]}"')
        done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
        answers = done.stdout.splitlines()
        assert [expected in answer for answer, expected in zip(answers, asks.values(), strict=True)] == [True] * len(
            asks
        )

    def test_an_unknown_shell(self, shell: Shell) -> None:
        assert "give one of bash, zsh, tcsh" in shell.refuses("completion", "fish")


@pytest.mark.parametrize("command", TOOLS)
def test_every_command_teaches(command: str, shell: Shell) -> None:
    ran = shell(command, "--help")
    assert ran.code == 0
    assert f"examples:\n  infoprune {command} " in ran.out
    assert "known subclasses" not in ran.out


HELP_WITHOUT_TORCH = """
import sys
from infoprune.cli import TOOLS, main
for command in ([], *([tool] for tool in TOOLS)):
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
    print("imported", *command, *{"torch", "lightning", "torchvision"} & set(sys.modules))
"""


def test_help_does_not_wait_for_pytorch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    imported = [line for line in done.stdout.splitlines() if line.startswith("imported")]
    assert imported == ["imported", *(f"imported {command}" for command in TOOLS)], done.stderr


def test_the_help_knows_all_names() -> None:
    assert CRITERIA.names == known_names.CRITERIA
    assert ALLOCATIONS.names == known_names.ALLOCATIONS
    assert BACKENDS.names == known_names.BACKENDS


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in TOOLS)
