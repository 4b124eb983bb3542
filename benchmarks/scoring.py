"""What scoring costs, beside the procedures that the papers' code follows, in one run on one machine.

- *From weights alone*: seconds for all layers of ResNet-56 and ResNet-50.
- *From feature maps*: HRank's and CHIP's own procedures (a pass over the images for each layer; a rank call for each
  map; a nuclear norm for each channel left out) against one streamed pass, with the same scores.
- *Shapley values*: permutations that all images share, as in Ancona et al. (2020), with the part of the network behind
  the layer run again, and without that, against ours at equal error.

The slow procedures are timed on fewer images and scaled up, in proportion; the tables say so. Run from the repository
root, on a machine that does nothing else:

    python -m benchmarks.scoring --cifar FOLDER --weights resnet56.pt    # writes benchmarks/results/scoring.md

It takes some twenty minutes on one core. What is compared is always timed in one section; ``--section`` measures only
the ones that it names (``--section weights maps``) and leaves what is known of the others (``scoring.json``).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import infoprune
from benchmarks.machine import describe
from benchmarks.subject import CALIBRATION_IMAGES, FROZEN, Subject
from infoprune.criteria import CHIP, HRank, Shapley, get_criterion
from infoprune.criteria.activations.tap import stream_activations
from infoprune.criteria.filters import scored_layers
from infoprune.criteria.measures.concentration import Concentration
from infoprune.criteria.measures.feature_rank import feature_ranks
from infoprune.criteria.payoffs import fidelity, probability

RESULTS = Path(__file__).parent / "results" / "scoring.md"
OWN_IMAGES = 16
"""Images that the papers' procedures are timed on."""
GAME_IMAGES = 256
GAME_LAYERS = ("layer1.4.conv1", "layer2.4.conv1", "layer3.4.conv1")
SMALL_CHANNELS = 8
SHORT = ", cut"
SMALL = f"layer2.4.conv1{SHORT}"
"""A layer that is cut to so few channels that the exact values can be had."""
RULES: dict[str, dict[str, Any]] = {
    "probability": {"payoff": "probability", "absent": "zero", "min_coalition": 0.0},
    "fidelity": {"payoff": "fidelity", "absent": "mean", "min_coalition": 0.0},
}
"""What the channels play for, over coalitions of all sizes."""
PERMUTATIONS = 5
"""Of the plain sampler, as in TorchPruner."""
RUNS = 6
"""Of ours, with different seeds: their scatter is the error, their mean the long run."""


def seconds(work: Callable[[], Any], runs: int = 1) -> float:
    """Return the quickest of some runs, in processor time: what other programs take does not count."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def from_weights(subject: Subject) -> Iterator[str]:
    """Criteria that need no data."""
    large = torchvision.models.resnet50()
    structures = [
        (subject.model, subject.structure),
        (subject.model, infoprune.trace(subject.model, torch.zeros(1, 3, 32, 32))),
        (large, infoprune.trace(large, torch.zeros(1, 3, 224, 224))),
    ]
    for name in ("random", "l1", "l2", "geometric_median", "batchnorm_scale", "capacity_independence"):
        times = [seconds(partial(get_criterion(name), *pair), runs=3) for pair in structures]
        yield f"| `{name}` |" + "".join(f" {value:.4f} s |" for value in times)


def own_ranks(maps: Tensor) -> Tensor:
    """HRank's: a rank call for each map."""
    return torch.tensor([[torch.linalg.matrix_rank(one).item() for one in image] for image in maps])


def own_independence(maps: Tensor) -> Tensor:
    """CHIP's: a nuclear norm for each channel left out."""
    rows = []
    for image in maps.flatten(2):
        whole = torch.linalg.matrix_norm(image, "nuc")
        masked = image.expand(len(image), *image.shape).clone()
        masked[torch.arange(len(image)), torch.arange(len(image))] = 0
        rows.append(whole - torch.stack([torch.linalg.matrix_norm(one, "nuc") for one in masked]))
    return torch.stack(rows)


def from_maps(subject: Subject) -> Iterator[str]:
    """Criteria that look at feature maps."""
    data = list(subject.calibration())
    layers = scored_layers(subject.structure)
    with torch.no_grad():
        forward = seconds(lambda: [subject.model(images) for images, _ in data])
    kept: dict[str, Tensor] = {}
    few = [(images[:OWN_IMAGES], labels[:OWN_IMAGES]) for images, labels in data[:1]]
    stream_activations(subject.model, layers, few, OWN_IMAGES, kept.__setitem__, "benchmark")
    yield f"| forward pass alone | {forward:.2f} s | | | |"
    scale = CALIBRATION_IMAGES / OWN_IMAGES
    for criterion, own in ((HRank(), own_ranks), (CHIP(), own_independence)):
        found: dict[str, Tensor] = {}
        calls = seconds(lambda own=own, found=found: found.update({name: own(maps) for name, maps in kept.items()}))
        theirs = calls * scale + len(layers) * forward
        ours = seconds(lambda criterion=criterion: criterion(subject.model, subject.structure, data))
        scores = criterion(subject.model, subject.structure, few)
        means = {name: values.double().mean(dim=0) for name, values in found.items()}
        apart = max(((scores[name] - means[name]).abs() / means[name].abs().clamp(min=1e-9)).max() for name in means)
        order = sum(int((scores[name].argsort() == means[name].argsort()).all()) for name in means)
        agreement = f"{apart:.1e}, same order in {order} of {len(means)} layers"
        if own is own_ranks:
            same = [
                (feature_ranks(maps.flatten(0, 1)).view(maps.shape[:2]) == found[name]) for name, maps in kept.items()
            ]
            equal = torch.cat([part.flatten() for part in same]).double().mean()
            agreement = f"{equal:.3%} of the ranks alike, same order in {order} of {len(means)} layers"
        yield f"| `{criterion.name}` | {ours:.2f} s | {theirs:.1f} s | {theirs / ours:.1f}x | {agreement} |"
    for entropy in ("hist", "pix", "chan"):
        how = Concentration(entropy=entropy)
        ours = seconds(lambda how=how: how.measure(subject.model, subject.structure, data))
        yield f"| information concentration, `{entropy}` | {ours:.2f} s | | {ours / forward:.2f} x the forward pass | |"


class Suffix:
    """The network behind the first convolution of one block, for masks of its channels."""

    def __init__(self, model: nn.Module, layer: str, images: Tensor, labels: Tensor, rules: str) -> None:
        blocks = [(f"layer{i}.{j}", block) for i in (1, 2, 3) for j, block in enumerate(getattr(model, f"layer{i}"))]
        place = [name for name, _ in blocks].index(layer.removesuffix(".conv1"))
        self.block, self.later, self.head = blocks[place][1], [block for _, block in blocks[place + 1 :]], model.linear
        x = torch.relu(model.bn1(model.conv1(images)))
        for _, block in blocks[:place]:
            x = block(x)
        self.input, self.hidden = x, torch.relu(self.block.bn1(self.block.conv1(x)))
        of_fidelity = rules == "fidelity"
        self.absent = self.hidden.mean(dim=(0, 2, 3), keepdim=True) if of_fidelity else torch.zeros(())
        self.payoff = fidelity if of_fidelity else probability
        self.aim = self.outputs(self.hidden) if of_fidelity else labels

    def outputs(self, hidden: Tensor) -> Tensor:
        """Run the rest of the network on these activations."""
        x = self.block.bn2(self.block.conv2(hidden))
        x = torch.relu(x + self.block.shortcut(self.input))
        for block in self.later:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))

    def value(self, mask: Tensor) -> Tensor:
        """Payoff of each image; the same channels are missing in all."""
        keep = mask.view(1, -1, 1, 1)
        return self.payoff(self.outputs(self.hidden * keep + self.absent * (1 - keep)), self.aim).double()


def plain_permutation(suffix: Suffix, players: int, generator: torch.Generator) -> Tensor:
    """Contributions along one permutation that all images share: (players,)."""
    mask, values = torch.ones(players), torch.zeros(players, dtype=torch.float64)
    before = suffix.value(mask)
    for player in torch.randperm(players, generator=generator).tolist():
        mask[player] = 0
        after = suffix.value(mask)
        values[player] = (before - after).mean()
        before = after
    return values


def small(subject: Subject) -> nn.Module:
    """Return the network with so few channels in one layer that all coalitions can be played."""
    group = subject.structure.group(SMALL.removesuffix(SHORT))
    plan = subject.structure.plan({group.name: range(SMALL_CHANNELS, group.size)})
    model = copy.deepcopy(subject.model)
    infoprune.shrink(model, plan)
    return model


@torch.no_grad()
def game(subject: Subject, layer: str, rules: str) -> Iterator[str]:
    """Shapley values of a layer, ours against the plain sampler at equal error."""
    few = layer == SMALL
    name = layer.removesuffix(SHORT)
    model = small(subject) if few else subject.model
    data = next(iter(subject.data.calibration_batches(GAME_IMAGES, batch_size=GAME_IMAGES)))
    others = [group.name for group in subject.structure.prunable if group.name != name]
    structure = infoprune.trace(model, torch.zeros(1, 3, 32, 32), frozen=[*FROZEN, *others])
    n = structure.group(name).size

    def scores(seed: int, estimator: str = "antithetic") -> Tensor:
        how = Shapley(estimator=estimator, seed=seed, images=GAME_IMAGES, **RULES[rules])
        return how(model, structure, [data])[name]

    runs = torch.stack([scores(seed) for seed in range(RUNS)])
    reference = scores(0, "exact") if few else runs.mean(dim=0)
    # Against their own mean, runs look better than they are.
    own = _error(runs, reference) * (1 if few else (RUNS / (RUNS - 1)) ** 0.5)
    suffix, generator = Suffix(model, name, *data, rules), torch.Generator().manual_seed(0)
    plain = torch.stack([plain_permutation(suffix, n, generator) for _ in range(PERMUTATIONS)])

    # Permutations are independent: the error falls with the square root of their number.
    single = _error(plain, reference)
    needed = (single / own) ** 2
    how = Shapley(**RULES[rules])
    evaluations = needed * n / (how.pilot + how.evaluations(n))
    ours = seconds(lambda: scores(RUNS))
    front = seconds(lambda: Suffix(model, name, *data, rules))
    behind = front + needed * seconds(lambda: plain_permutation(suffix, n, generator))
    whole = needed * n * seconds(lambda: model(data[0]), runs=3)
    yield (
        f"| {rules} | `{name}`, {n} | {'exact values' if few else 'a long run'} | {single / PERMUTATIONS**0.5:.2f} | "
        f"{own:.3f} | {needed:.0f} | {evaluations:.1f}x | {ours:.1f} s | {behind:.0f} s, {behind / ours:.1f}x | "
        f"{whole:.0f} s, {whole / ours:.1f}x |"
    )


def _error(estimates: Tensor, reference: Tensor) -> float:
    """Root mean squared error of (runs, players) over the scatter of the values."""
    return float((estimates - reference).square().mean().sqrt() / reference.std())


TEXT = """\
# What scoring costs

`python -m benchmarks.scoring --cifar FOLDER --weights resnet56.pt` on {machine}. Processor time.

## From weights alone

| criterion | ResNet-56, 27 layers | ResNet-56, all layers | ResNet-50 |
|---|---:|---:|---:|
{weights}

## From feature maps

{calibration} training images, the first convolution of the 27 blocks of a trained ResNet-56. *Theirs*: the papers'
procedure, a forward pass for each layer, and rank or nuclear norm map by map; timed on {own} images and scaled up.
Agreement on these {own} images: the largest relative difference of the scores.

| criterion | ours | theirs | | agreement |
|---|---:|---:|---:|---|
{maps}

## Shapley values

Layers of the same network, {games} images, coalitions of all sizes. The channels play for the *probability* of the true
class, with zeros in place of absent ones, or for *fidelity* to the whole network's outputs, with their means (the
defaults, but for the size of coalitions). *Plain*: permutations that all images share, with the whole network run for
each coalition (its time is that of as many forward passes), or only what lies behind the layer. *Ours*: one round as
it comes, the pilot included: antithetic pairs of permutations, more of them for images on which coalitions matter; at
most one batch is in memory, as many coalitions at a time as it has images. Error: root mean square over the standard
deviation of the values; against the exact values where the layer was cut to {small} channels first, else against the
mean of {runs} runs of ours. The plain sampler's is measured on {permutations} permutations and falls with the square
root of their number; *needed* are those that bring it to our error, the times theirs, with the pass through what lies
in front of the layer.

| payoff | layer, channels | against | error: {permutations} plain | ours | needed | evaluations | ours \
| behind the layer | whole network |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|
{shapley}
"""


def text(found: dict[str, list[str]]) -> str:
    """Return the tables of what was measured."""
    lines = {name: "\n".join(found.get(name, [f"| `{name}`: not measured |"])) for name in SECTIONS}
    return TEXT.format(
        machine=describe(),
        weights=lines["weights"],
        calibration=CALIBRATION_IMAGES,
        own=OWN_IMAGES,
        maps=lines["maps"],
        games=GAME_IMAGES,
        permutations=PERMUTATIONS,
        runs=RUNS,
        small=SMALL_CHANNELS,
        shapley="\n".join(lines[name] for name in SECTIONS if ": layer" in name),
    )


SECTIONS: dict[str, Callable[[Subject], Iterator[str]]] = {
    "weights": from_weights,
    "maps": from_maps,
    **{
        f"{rules}: {layer}": partial(game, layer=layer, rules=rules)
        for rules in RULES
        for layer in (SMALL, *GAME_LAYERS)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of a CIFAR ResNet-56")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where tables go, and beside them what is known")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = options.out.with_suffix(".json")
    found: dict[str, list[str]] = json.loads(known.read_text()) if known.exists() else {}
    subject = Subject(options.cifar, options.weights)
    for name in options.section:
        found[name] = list(SECTIONS[name](subject))
        known.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        options.out.write_text(text(found), encoding="utf-8")
        print("\n".join(found[name]), flush=True)


if __name__ == "__main__":
    main()
