"""A run record like that of a real run, made of arithmetic: what the report tests render."""

from __future__ import annotations

import math
import random

from infoprune.report import EventRecord, LayerRow, RunRecord, Totals


def sample_record(blocks: int = 3) -> RunRecord:
    """A residual net of three stages, pruned twice: widths, costs and scores fit together."""
    rng = random.Random(0)
    names = ["conv1"] + [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(blocks) for c in (1, 2)]
    full = {name: 16 * 2 ** (max(0, int(name[5]) - 1)) if name.startswith("layer") else 16 for name in names}
    half = {name: round(width * (0.62 if name.endswith("conv1") else 0.8)) for name, width in full.items()}
    final = {name: round(width * (0.38 if name.endswith("conv1") else 0.7)) for name, width in full.items()}
    widths = [full, half, final]

    def rows(before: dict[str, int], after: dict[str, int]) -> list[LayerRow]:
        out, read_before, read_after, side = [], 3, 3, 32
        for name in names:
            side = 32 // 2 ** max(0, int(name[5]) - 1) if name.startswith("layer") else 32
            params = [9 * read_before * before[name], 9 * read_after * after[name]]
            group = name if name.endswith("conv1") else f"layer{name[5]}.0.conv2"
            out.append(
                LayerRow(name, group, "conv", before[name], after[name], *params, *(p * side * side for p in params))
            )
            read_before, read_after = before[name], after[name]
        head = [10 * read_before + 10, 10 * read_after + 10]
        return [*out, LayerRow("linear", "linear", "linear", 10, 10, *head, head[0] - 10, head[1] - 10)]

    def totals(layers: list[LayerRow], latency: float, accuracy: float) -> Totals:
        macs, params = sum(r.macs_after for r in layers), sum(r.params_after for r in layers)
        metrics: dict[str, float | None] = {"test/top1": accuracy, "test/loss": 1.6 - 1.4 * accuracy}
        return Totals(macs, params, latency, latency / 25, metrics)

    events = []
    for index, epoch in enumerate((6, 9)):
        layers = rows(widths[index], widths[index + 1])
        groups = {r.group: (r.channels_before, r.channels_after) for r in layers if r.name != "linear"}
        scores = {g: [abs(rng.gauss(0.5, 0.18)) ** 1.5 for _ in range(n)] for g, (n, _) in groups.items()}
        kept = {g: sorted(sorted(range(len(s)), key=lambda i: -s[i])[: groups[g][1]]) for g, s in scores.items()}
        macs, params = sum(r.macs_after for r in layers), sum(r.params_after for r in layers)
        accuracy = 0.9731 - 0.004 * index
        events.append(
            EventRecord(
                index, epoch, epoch * 40, "capacity_independence", macs, params, layers, scores, kept,
                {"val/top1": accuracy}, {"val/top1": accuracy - 0.003},
            )
        )  # fmt: skip
    curve = [0.981 - 0.85 * math.exp(-0.9 * (e + 1)) - (0.012 * math.exp(-(e - 9)) if e >= 9 else 0) for e in range(14)]
    history: list[dict[str, float | None]] = [
        {"epoch": e, "val/top1": v, "val/loss": 1.6 - 1.4 * v} for e, v in enumerate(curve)
    ]
    return RunRecord(
        model="CifarResNet",
        criterion="capacity_independence",
        before=totals(rows(full, full), 0.00213, 0.9806),
        after=totals(rows(full, final), 0.00148, 0.9778),
        layers=rows(full, final),
        events=events,
        options={"criterion": "capacity_independence", "macs": 0.5, "schedule": [6, 9], "allocation": "uniform"},
        frozen={"linear": "its channels are the model's output"},
        coupling={
            "layer1.0.conv2": "layer1.0.conv2: 16 units can be pruned. One unit takes from\n"
            "  conv1.weight: 1 of its filters\n"
            "  layer1.0.conv1.weight: 1 of its input channels, through convolution in layer1.0.conv1\n"
            "  layer1.0.conv2.weight: 1 of its filters, through batch_norm in bn1, then add in layer1.0",
            "layer1.0.conv1": "layer1.0.conv1: 16 units can be pruned. One unit takes from\n"
            "  layer1.0.conv1.weight: 1 of its filters",
        },
        history=history,
        metric="test/top1",
        warnings=[
            "The latency was measured on a machine with 2 threads, shared with others: repeat it where it matters."
        ],
        versions={"python": "3.11.7", "torch": "2.6.0", "lightning": "2.5.0", "infoprune": "0.1.0"},
        seed=42,
        device="cpu (2 threads)",
        command="infoprune fit --config configs/quickstart.yaml",
        config="seed_everything: 42\ntrainer:\n  max_epochs: 14\n  accelerator: cpu\n",
        files={
            "report": "report.html",
            "pruned model": "pruned.pt",
            "checkpoint": "checkpoints/last.ckpt",
            "plan": "plan.json",
            "config": "config.yaml",
        },
        created="2026-01-02T03:04:05+00:00",
    )
