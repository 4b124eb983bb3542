"""``infoprune inspect`` and ``prune``, and how all commands are told which model: what they say, write and refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import infoprune
import infoprune.api
from infoprune.allocation import ALLOCATIONS
from infoprune.criteria import CRITERIA
from infoprune.models import CifarResNet, ImageClassifier, load_weights
from infoprune.report import RunRecord
from tests import warm
from tests.commands import NET, SHAPE, Shell, weights
from tests.tiny import same

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    monkeypatch.setenv("COLUMNS", "120")
    return Shell(capsys)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit of a user's own module that was pruned once."""
    folder = tmp_path_factory.mktemp("fitted")
    words = ["fit", "--model=tests.user_project.UserModule", "--data=tests.user_project.UserData", *QUIET]
    words += ["--trainer.max_epochs=2", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    words += ["--trainer.logger.name=run", "--trainer.callbacks+=FilterPruning", "--trainer.callbacks.criterion=l1"]
    words += ["--trainer.callbacks.filters=0.5", "--trainer.callbacks.schedule=1"]
    from infoprune.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(ROOT)
        patch.setattr(sys, "argv", ["infoprune"])
        assert main(words) == 0
    return folder / "logs/run/version_0"


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


class TestInspect:
    def test_tables_tell_groups_reasons_and_costs(self, shell: Shell) -> None:
        ran = shell("inspect", *NET, *SHAPE, "--explain", "layer1.0.conv1")
        assert ran.code == 0
        for words in ("Channel groups", "layer2.0.conv1", "reaches the model's output", "Cost by layer", "linear"):
            assert words in ran.out
        assert "layer1.0.conv2.weight: 1 of its input channels" in ran.out

    def test_json_has_the_documented_keys_and_the_engines_numbers(self, shell: Shell) -> None:
        data = shell("inspect", *NET, *SHAPE, "--frozen", "layer1*", "--json").json
        structure = infoprune.trace(CifarResNet(depth=8), torch.zeros(1, 3, 16, 16), frozen=["layer1*"])
        assert list(data) == ["command", "format", "infoprune", "model", "macs", "params", "groups", "layers"]
        assert (data["macs"], data["params"]) == (structure.cost().macs, structure.cost().params)
        assert [group["name"] for group in data["groups"]] == [group.name for group in structure.groups]
        assert [group["reason"] for group in data["groups"]] == [group.reason for group in structure.groups]
        assert sum(layer["macs"] for layer in data["layers"]) == data["macs"]
        free = next(group for group in data["groups"] if group["name"] == "layer2.0.conv1")
        assert free["macs_if_halved"] == structure.cost({"layer2.0.conv1": free["units"] // 2}).macs
        assert data["model"]["class_path"] == "infoprune.models.CifarResNet"

    def test_sensitivity_grows_with_the_cut(self, shell: Shell) -> None:
        data = shell("inspect", *NET, *SHAPE, "--sensitivity", "--json").json
        figures = [group["sensitivity"] for group in data["groups"] if group["prunable"]]
        assert all(list(figure) == ["0.25", "0.5", "0.75"] for figure in figures)
        assert sum(figure["0.25"] < figure["0.75"] for figure in figures) > len(figures) / 2
        assert all(value > 0 for figure in figures for value in figure.values())

    def test_sensitivity_on_images_is_an_accuracy(self, shell: Shell) -> None:
        words = ["--model.in_channels", "1", "--input_shape", "2,1,8,8", "--data", "DigitsDataModule"]
        data = shell("inspect", *NET, *words, "--images", "32", "--sensitivity", "--json").json
        values = [value for group in data["groups"] for value in group["sensitivity"].values()]
        assert values
        assert all(0 <= value <= 1 and value * 32 == round(value * 32) for value in values)

    def test_help_teaches_without_a_list_of_every_class(self, shell: Shell) -> None:
        for command in ("inspect", "prune"):
            ran = shell(command, "--help")
            assert ran.code == 0
            assert "examples:" in ran.out
            assert f"infoprune {command} --model torchvision.models.resnet18" in ran.out
            assert "known subclasses" not in ran.out

    def test_help_of_a_model(self, shell: Shell) -> None:
        ran = shell("inspect", "--model.help", "CifarResNet")
        assert ran.code == 0
        assert "--model.depth" in ran.out


class TestWhichModel:
    def test_a_run_folder_its_checkpoint_and_its_config(self, shell: Shell, run: Path) -> None:
        (checkpoint,) = run.glob("checkpoints/*.ckpt")
        of_run = shell("inspect", "--model", run, "--json").json
        assert of_run["model"]["class_path"] == "tests.user_project.UserModule"
        assert of_run["model"]["input_shape"][1:] == [1, 8, 8]
        assert [layer["filters"] for layer in of_run["layers"]] == [4, 8, 4]
        assert shell("inspect", "--model", checkpoint, "--json").json["layers"] == of_run["layers"]
        unpruned = shell("inspect", "--model", run / "config.yaml", "--input_shape", "2,1,8,8", "--json").json
        assert [layer["filters"] for layer in unpruned["layers"]] == [8, 16, 4]

    def test_a_class_with_the_weights_of_a_pruned_run(self, shell: Shell, run: Path) -> None:
        (checkpoint,) = run.glob("checkpoints/*.ckpt")
        words = ["inspect", "--model", "tests.user_project.UserModule", "--input_shape", "2,1,8,8", "--json"]
        for file in (run / "pruned.pt", checkpoint):
            layers = shell(*words, "--weights", file).json["layers"]
            assert [layer["filters"] for layer in layers] == [4, 8, 4]

    def test_a_network_inside_a_module_with_the_modules_own_example(self, shell: Shell, tmp_path: Path) -> None:
        (tmp_path / "my.yaml").write_text(
            "model:\n  class_path: infoprune.models.ImageClassifier\n  init_args:\n    num_classes: 10\n"
            "    input_shape: [3, 16, 16]\n    model:\n      class_path: infoprune.models.CifarResNet\n"
            "      init_args: {depth: 8}\n"
        )
        data = shell("inspect", "--model", "my.yaml", "--module", "model", "--json").json
        assert (data["model"]["class"], data["model"]["input_shape"]) == ("CifarResNet", [1, 3, 16, 16])
        assert data["layers"][0]["name"] == "conv1"

    def test_a_users_module_in_the_current_folder(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, width: int = 4):\n"
            "        super().__init__(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 3))\n"
        )
        words = ["-m", "infoprune", "inspect", "--model", "mine.Net", "--model.width", "6", *SHAPE]
        done = warm.python(*words, "--json", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["layers"][0]["filters"] == 6

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model", "torchvision.models.resnet1"], "has no attribute 'resnet1'"),
            (["--model", "CifarResNet", "--model.dept", "8"], "CifarResNet has no option 'dept', did you mean 'depth'"),
            (["--model", "CifarResNet", "--model.depth", "9"], "nearest is depth=8"),
            (["--model", "absent/folder"], "there is no such file or folder"),
            ([*NET, "--wieghts", "w.pt"], "did you mean '--weights'"),
            ([*NET], "--input_shape 1,3,224,224"),
            ([*NET, "--input_shape", "1,3,x"], "whole numbers"),
            ([*NET, "--input_shape", "1,4,16,16"], "example inputs"),
            ([*NET, *SHAPE, "--weights", "absent.pt"], "no such file"),
            ([*NET, *SHAPE, "--module", "backbone"], "no such submodule"),
            ([*NET, *SHAPE, "--frozen", "head"], "'head' matches no module"),
            ([*NET, *SHAPE, "--explain", "layer1.0.conv"], "did you mean 'layer1.0.conv"),
            ([*NET, *SHAPE, "--sensitivity", "--criterion", "l11"], "did you mean 'l1'"),
            ([], "model"),
        ],
    )
    def test_mistakes_are_one_line(self, shell: Shell, words: list[str], message: str) -> None:
        line = shell.refuses("inspect", *words)
        assert line.startswith("infoprune: error: ")
        assert message in line

    def test_a_lone_checkpoint_asks_for_the_class(self, shell: Shell, tmp_path: Path) -> None:
        weights(tmp_path / "lone.pt")
        assert "--weights lone.pt" in shell.refuses("inspect", "--model", "lone.pt")

    def test_a_run_of_another_version_is_refused_with_the_version(self, shell: Shell, run: Path) -> None:
        record = json.loads((run / "record.json").read_text())
        (run / "record.json").write_text(json.dumps({**record, "format": 99, "version": "9.9.0"}))
        for command in (["inspect"], ["prune", "--macs", "0.5", "--out", "out"]):
            line = shell.refuses(*command, "--model", run)
            assert "infoprune 9.9.0" in line
            assert "format 99" in line
        assert not Path("out").exists()

    def test_a_run_that_did_not_end_or_has_no_config(self, shell: Shell, run: Path) -> None:
        (run / "pruned.pt").unlink()
        assert "name one of its checkpoints" in shell.refuses("inspect", "--model", run)
        (run / "config.yaml").unlink()
        assert "give the class as --model" in shell.refuses("inspect", "--model", run)

    def test_weights_of_another_architecture_name_the_layer(self, shell: Shell, tmp_path: Path) -> None:
        path = weights(tmp_path / "deep.pt", depth=14)
        line = shell.refuses("inspect", *NET, *SHAPE, "--weights", path)
        assert "layer1.1.conv1" in line


class TestPrune:
    def test_leaves_a_folder_that_every_part_can_read(self, shell: Shell, tmp_path: Path) -> None:
        path = weights(tmp_path / "w.pt")
        words = ["--weights", path, "--macs", "0.5", "--criterion", "l1", "--latency_repeats", "2", "--out", "out"]
        ran = shell("prune", *NET, *SHAPE, *words)
        assert ran.code == 0
        assert "in one cut without training, chosen by l1" in " ".join(ran.out.split())
        assert {file.name for file in Path("out").iterdir()} == {
            "pruned.pt", "plan.json", "record.json", "report.html", "config.yaml"
        }  # fmt: skip

        mine = CifarResNet(depth=8).eval()
        load_weights(mine, path)
        result = infoprune.prune(mine, torch.zeros(1, 3, 16, 16), "l1", macs=0.5)
        theirs = infoprune.load("out/pruned.pt", CifarResNet(depth=8)).eval()
        assert same(mine, theirs)
        assert infoprune.PruningPlan.load("out/plan.json") == result.plan
        record = RunRecord.load("out/record.json")
        assert (record.before.macs, record.after.macs) == (result.before.macs, result.after.macs)
        assert record.before.latency_s
        assert "without training" in Path("out/report.html").read_text()
        assert "epoch -1" not in Path("out/report.html").read_text()

    def test_the_folder_is_a_model_again(self, shell: Shell) -> None:
        first = shell("prune", *NET, *SHAPE, "--macs", "0.6", "--latency_repeats", "0", "--out", "once", "--json").json
        second = ["prune", "--model", "once", "--macs", "0.5", "--latency_repeats", "0", "--out", "twice", "--json"]
        again = shell(*second).json
        assert again["record"]["before"]["macs"] == first["record"]["after"]["macs"]
        assert again["record"]["after"]["macs"] <= 0.5 * first["record"]["after"]["macs"]
        joined = infoprune.PruningPlan.load("twice/plan.json")
        assert infoprune.plan_of(infoprune.load("twice/pruned.pt", CifarResNet(depth=8))) == joined

    def test_layers_behind_the_cut_are_fitted(self, shell: Shell) -> None:
        words = [*NET, "--model.in_channels", "1", "--input_shape", "1,1,8,8", "--data", "DigitsDataModule"]
        words += ["--macs", "0.5", "--criterion", "l1", "--images", "64", "--latency_repeats", "0", "--json"]
        nets = []
        for out, options in (("plain", ["--recalibrate"]), ("fitted", ["--reconstruct"])):
            torch.manual_seed(0)
            used = shell("prune", *words, *options, "--out", out).json["record"]["options"]
            assert [f"--{name}" for name in ("recalibrate", "reconstruct") if used.get(name)] == options
            nets.append(infoprune.load(f"{out}/pruned.pt", CifarResNet(depth=8, in_channels=1)))
        plain, fitted = nets
        assert plain.layer1[0].conv1.out_channels == fitted.layer1[0].conv1.out_channels
        assert torch.equal(plain.conv1.weight, fitted.conv1.weight)  # which reads images
        assert not torch.equal(plain.layer1[0].conv2.weight, fitted.layer1[0].conv2.weight)
        assert "needs images" in shell.refuses("prune", *NET, *SHAPE, "--macs", "0.5", "--reconstruct", "--out", "c")

    def test_a_drop_instead_of_a_budget(self, shell: Shell) -> None:
        words = ["--model.in_channels", "1", "--input_shape", "1,1,8,8", "--data", "DigitsDataModule", "--out", "out"]
        words += ["--max_drop", "100", "--criterion", "l1", "--images", "64", "--latency_repeats", "0", "--json"]
        data = shell("prune", *NET, *words).json
        assert data["drop"]["sure"] == 1.0
        assert data["record"]["after"]["macs"] <= data["drop"]["macs"] * data["record"]["before"]["macs"]
        assert data["record"]["options"]["max_drop"] == 100
        assert "needs images" in shell.refuses("prune", *NET, *SHAPE, "--max_drop", "1", "--out", "other")

    def test_images_serve_criterion_recalibration_and_accuracy(self, shell: Shell) -> None:
        words = ["--model.in_channels", "1", "--input_shape", "1,1,8,8", "--data", "DigitsDataModule"]
        words += ["--images", "64", "--criterion", "taylor", "--filters", "0.75", "--recalibrate", "--out", "out"]
        record = shell("prune", *NET, *words, "--latency_repeats", "0", "--json").json["record"]
        assert record["metric"] == "accuracy"
        assert set(record["after"]["metrics"]) == {"accuracy", "loss"}
        assert record["options"]["recalibrate"] is True

    @pytest.mark.parametrize("words", [["--verify", "true"], ["--verify=false"], ["--no-verify"], ["--verify"]])
    def test_the_proof_can_be_asked_for_and_skipped(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        asked: list[bool] = []
        prune = infoprune.api.prune

        def watched(*args: Any, **options: Any) -> Any:
            asked.append(options["verify"])
            return prune(*args, **options)

        monkeypatch.setattr("infoprune.api.prune", watched)
        ran = shell("prune", *NET, *SHAPE, "--amount", "0.5", "--latency_repeats", "0", "--out", "out", *words)
        assert ran.code == 0, ran.err
        assert asked == ["false" not in words[0] and "no" not in words[0]]

    def test_help_names_criteria_and_allocations(self, shell: Shell) -> None:
        said = " ".join(shell("prune", "--help").out.split())
        assert all(f"{name}," in said for name in (*CRITERIA.names, *ALLOCATIONS.names))
        assert "60%%" not in said

    def test_fine_tuning_starts_from_what_it_wrote(self, shell: Shell) -> None:
        assert shell("prune", *NET, *SHAPE, "--filters", "0.5", "--latency_repeats", "0", "--out", "out").code == 0
        module = ImageClassifier(CifarResNet(depth=8), num_classes=10, init_from="out/pruned.pt")
        assert module.model.layer1[0].conv1.out_channels == 8

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "give --macs, --params, --filters or --latency"),
            (["--macs", "0.5", "--filters", "0.5"], "macs=0.5 and filters=0.5 clash"),
            (["--macs", "1.5"], "(0, 1]"),
            (["--macs", "0.0001"], "below the floor"),
            (["--macs", "half"], "half"),
            (["--macs", "0.5", "--criterion", "taylor"], "pass batches of training images"),
            (["--macs", "0.5", "--recalibrate"], "choose them with --data"),
            (["--macs", "0.5", "--allocation", "unifrom"], "did you mean 'uniform'"),
            (["--macs", "0.5", "--data", "NoData"], "NoData"),
        ],
    )
    def test_mistakes_leave_nothing_behind(self, shell: Shell, tmp_path: Path, words: list[str], message: str) -> None:
        assert message in shell.refuses("prune", *NET, *SHAPE, *words, "--out", "out")
        assert list(tmp_path.iterdir()) == []

    def test_never_writes_over_a_folder(self, shell: Shell, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert "exists already" in shell.refuses("prune", *NET, *SHAPE, "--macs", "0.5", "--out", "out")
        assert list((tmp_path / "out").iterdir()) == []
