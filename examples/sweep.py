"""A sweep over budgets and criteria with Optuna: which cuts are worth their loss of accuracy?

Each trial prunes a copy of one trained network, measures its accuracy on held-out images, and is kept as an offline
W&B run (`wandb sync` uploads it later). Nothing needs a network.

    pip install 'infoprune[demo,sweep]'
    python examples/sweep.py --trials 20
"""

from __future__ import annotations

import argparse
import copy

import lightning as L
import optuna
import torch
import wandb

import infoprune
from infoprune.data import DigitsDataModule
from infoprune.evaluate import accuracy
from infoprune.models import CifarResNet, ImageClassifier

IMAGES = torch.zeros(1, 1, 8, 8)


def trained(data: DigitsDataModule, epochs: int) -> torch.nn.Module:
    """A network for the digits, trained for some epochs."""
    module = ImageClassifier(CifarResNet(depth=8, in_channels=1), num_classes=10, input_shape=(1, 8, 8))
    L.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(module, data)
    return module.model.eval()


def main() -> None:
    """Run the sweep and print the trials that no other beats in both accuracy and MACs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule()
    data.prepare_data()
    data.setup("fit")
    network = trained(data, options.epochs)
    held_out = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        criterion = trial.suggest_categorical("criterion", ["l1", "taylor", "capacity_independence"])
        macs = trial.suggest_float("macs", 0.3, 0.9)
        pruned = copy.deepcopy(network)
        result = infoprune.prune(pruned, IMAGES, criterion, macs=macs, data=data, recalibration_batches=5)
        right, left = accuracy(pruned, held_out)["accuracy"], result.after.macs / result.before.macs
        with wandb.init(project="pruning", group="sweep", mode="offline", config=trial.params, reinit=True) as run:
            run.log({"accuracy": right, "macs_ratio": left})
        return right, left

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=options.trials)
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        print(f"{trial.values[1]:.0%} of the MACs, accuracy {trial.values[0]:.1%}: {trial.params}")


if __name__ == "__main__":
    main()
