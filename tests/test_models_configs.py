"""Every config for CIFAR-10 and ImageNet: parsed and instantiated, pruning callback included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from infoprune.callbacks import Distillation, FilterPruning
from infoprune.commands.training import parsers
from infoprune.models import ImageClassifier, WarmupCosineLR
from tests.tiers import thinned

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PARAMS = {
    "cifar10_dense": 853_018,
    "cifar10_resnet56_capacity_independence": 853_018,
    "cifar10_resnet110_capacity_independence": 1_727_962,
    "cifar10_vgg16_capacity_independence": 14_991_946,
    "imagenet_resnet50_capacity_independence": 25_557_032,
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", thinned(PARAMS, 3))
def test_instantiates(name: str, tmp_path: Path) -> None:
    config = read(name)
    config["trainer"] |= {"logger": False, "accelerator": "cpu", "default_root_dir": str(tmp_path)}
    network = config["model"]["init_args"]["model"]
    if "weights" in network.get("init_args", {}):
        network["init_args"]["weights"] = None  # would be downloaded
    cli = LightningCLI(
        L.LightningModule,
        None,
        subclass_mode_model=True,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=config,
    )
    module, data = cli.model, cli.datamodule
    assert isinstance(module, ImageClassifier)
    assert sum(p.numel() for p in module.model.parameters()) == PARAMS[name]
    assert module.example_input_array.shape[1:] == data.input_shape
    with torch.no_grad():
        assert module.eval()(module.example_input_array).shape == (1, module.num_classes)
    configured: Any = module.configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, WarmupCosineLR)
    assert cli.trainer.max_epochs is not None
    scheduler.follow(cli.trainer.max_epochs, steps_per_epoch=100)
    assert str(data.root).startswith("data")  # a folder of the user's, below the working directory
    pruning = [callback for callback in cli.trainer.callbacks if isinstance(callback, FilterPruning)]  # type: ignore[attr-defined]
    if name == "cifar10_dense":
        assert not pruning
        return
    assert pruning[0].options["criterion"] == "capacity_independence"
    assert pruning[0].schedule.events == ((0, 1.0),)  # one cut before the first epoch: any max_epochs works


def test_the_recipe_is_added_to_a_config_without_pruning() -> None:
    parser = parsers()["fit"]
    files = [f"--config={CONFIGS / name}" for name in ("cifar10_dense.yaml", "recipe.yaml")]
    config = parser.parse_args([*files, "--trainer.accelerator=cpu"])
    made = parser.instantiate_classes(config)
    distillation, pruning = (
        callback for callback in made.trainer.callbacks if callback.__module__.startswith("infoprune")
    )
    assert isinstance(distillation, Distillation)
    assert isinstance(pruning, FilterPruning)
    assert config.trainer.callbacks[-1].init_args.allocation == "information_loss"
    assert pruning.schedule.events == ((0, 1.0),)
    assert made.model.configure_optimizers()["optimizer"].defaults["lr"] == 0.01
