"""Does a filter's capacity predict the entropy of its feature map? On a trained ResNet-56 and CIFAR-10, layer by layer.

Run from the repository root (half a minute on one core):

    python -m benchmarks.feature_guide --cifar FOLDER --weights resnet56.pt
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.subject import CALIBRATION_IMAGES, Subject
from infoprune.criteria.measures.capacity import CAPACITIES
from infoprune.criteria.measures.feature_guided import ENTROPIES, guide_capacity
from infoprune.report.guide import correlation_map

RESULTS = Path(__file__).parent / "results"
HEAD = """\
# Capacity estimators and the entropy of feature maps

`python -m benchmarks.feature_guide --cifar FOLDER --weights resnet56.pt` on {machine}.

Spearman correlation between the capacity of a filter, from its weights alone, and the mean entropy of its feature map
over {images} training images; mean over the first convolutions of the 27 blocks of a trained ResNet-56. *common*: the
maps of a layer share the range of the bins; *own*: each has its own; *pixel*: softmax of squared deviations.

| entropy | {names} | chosen |
|---|{bars}---|
{rows}

Layer by layer with the *common* range:

![correlations](feature_guide.svg)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of a CIFAR ResNet-56")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subject = Subject(options.cifar, options.weights)
    rows = []
    for entropy in ENTROPIES:
        guide = guide_capacity(subject.model, subject.structure, subject.calibration(), entropy)
        means = " | ".join(f"{guide.means[name]:.2f}" for name in CAPACITIES)
        rows.append(f"| {entropy} | {means} | `{guide.best}` |")
        if entropy == ENTROPIES[0]:
            (options.out / "feature_guide.svg").write_text(correlation_map(guide), encoding="utf-8")
    names, bars = " | ".join(f"`{name}`" for name in CAPACITIES), "---:|" * len(CAPACITIES)
    text = HEAD.format(machine=describe(), images=CALIBRATION_IMAGES, names=names, bars=bars, rows="\n".join(rows))
    (options.out / "feature_guide.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
