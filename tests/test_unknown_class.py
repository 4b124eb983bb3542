"""A misspelt class of a training command is refused before the heavy imports, and no class of a user ever is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infoprune.commands import unknown_class
from infoprune.commands.known_names import DATA, MODULES
from infoprune.commands.unknown_class import check_class_names
from infoprune.errors import ConfigurationError
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "ImageClasifier"], "--model: no class is called 'ImageClasifier', did you mean 'ImageClassifier'"),
        (["--model=imageclassifier", "--model.num_classes=10"], "did you mean 'ImageClassifier'"),
        (
            ["--config", QUICKSTART, "--data", "DigitDataModule"],
            "--data: no class is called 'DigitDataModule'",
        ),
        (["-c", QUICKSTART, "--model", "ImageClassifier", "--data=CIFAR10Data"], "did you mean 'CIFAR10DataModule'"),
    ],
)
def test_a_misspelt_class_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_class_names(["fit", *words])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "ImageClassifier", "--data", "DigitsDataModule"],
        ["--model", "resnet18", "--data", "DigitsDataModule"],
        ["--model", "timm:resnet50"],
        ["--model", "my_package.ImageClasifier"],
        ["--model", "SomethingElse"],
        ["--model", "MyImageClassifier", "--data", "my_package.MyData"],
        ["--model", "MyImageClassifier", "--trainer.callbacks+=my_package.MyCallback"],
        ["--model", "MyImageClassifier", "--config", "mine.yaml"],
        ["--model", "MyImageClassifier", "--config", "not_there.yaml"],
        ["--model", "ImageClassifiers", "--model.num_classes", "10"],
        ["--config"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data:\n  class_path: my_package.MyData\n")
    (tmp_path / "ImageClassifiers").write_text("a configuration of the model\n")
    check_class_names(["fit", *words])


def test_a_network_that_a_package_offers_by_a_similar_name_is_left_to_the_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Entry:
        name = "imageclassifier2"

    monkeypatch.setattr(unknown_class.importlib.metadata, "entry_points", lambda group: [Entry()])
    check_class_names(["fit", "--model", "imageclassifier2"])


def test_the_known_names_are_those_of_the_parser() -> None:
    script = """
import lightning as L
import infoprune.commands.training
def names(cls):
    return {cls.__name__}.union(*(names(sub) for sub in cls.__subclasses__()))
print(sorted(names(L.LightningModule)), sorted(names(L.LightningDataModule)))
"""
    done = warm.python("-c", script, cwd=ROOT)
    assert done.stdout.strip() == f"{sorted(MODULES)} {sorted(DATA)}"


def test_the_command_imports_neither_pytorch_nor_lightning() -> None:
    script = """
import sys
from infoprune.cli import main
code = main(["fit", "--model", "ImageClasifier"])
print(code, *{"torch", "lightning", "torchvision", "jsonargparse"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"
    assert len(done.stderr.splitlines()) == 1
