"""One run of Shapley scoring: pilot, rounds, limits, and what several processes have to agree on."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from infoprune.calibration import batches, evaluating, rows_of
from infoprune.criteria.activations.tap import mean_activations
from infoprune.criteria.shapley import importance_sampling
from infoprune.criteria.shapley.channel_game import ChannelGame
from infoprune.criteria.shapley.running_moments import RunningMoments
from infoprune.criteria.shapley.score_checkpoint import ScoreCheckpoint
from infoprune.distributed import all_or_none, process, rows_of_all_processes, sum_over_processes, world_size
from infoprune.errors import CheckpointError
from infoprune.progress import Progress

if TYPE_CHECKING:
    from infoprune.criteria.shapley.criterion import Shapley
    from infoprune.structure import ChannelGroup, Structure


class ShapleyRun:
    """Batches outside, groups inside, so that all groups are equally far at any time.

    Args:
        criterion: The criterion and its options; told what the run costs.
        model: What is scored.
        structure: Its structure.
        groups: The groups to play.
    """

    def __init__(
        self, criterion: Shapley, model: nn.Module, structure: Structure, groups: Sequence[ChannelGroup]
    ) -> None:
        self.criterion = criterion
        self.model = model
        self.images, self.started = 0, 0.0
        shares = suffix_shares(structure)
        self.layers = [layer for group in groups for layer, _ in structure.producers(group)]
        self.groups = [
            _GroupRun(criterion, model, structure, group, shares[structure.producers(group)[0][0].name])
            for group in groups
        ]

    def play(self, data: Iterable[Any]) -> dict[str, RunningMoments]:
        """Return each group's contributions over all processes, from all rounds or as many as the limits allow.

        Args:
            data: batches of calibration images.
        """
        criterion = self.criterion
        self.started, criterion.passes = time.perf_counter(), 0.0
        checkpoint = ScoreCheckpoint(
            criterion.partial_file,
            criterion,
            self.model,
            moments={group.name: group.moments for group in self.groups},
            spreads={group.name: group.spreads for group in self.groups},
        )
        done = checkpoint.load()
        self._check_alike(done)
        with evaluating(self.model), torch.no_grad():
            with all_or_none():
                stored = list(self._stored(data))
            self.images = sum(batch.size for batch in stored)
            if criterion.absent == "mean":
                own = (batch.inputs for batch in stored if batch.size)
                means = mean_activations(self.model, self.layers, own, criterion.label)
                for group in self.groups:
                    group.game.means = means
                criterion.passes += 1
            work = sum(group.pilot_cost + criterion.rounds * group.cost for group in self.groups)
            with Progress(criterion.label, work * self.images, criterion.progress) as bar:
                self._pilot(stored, checkpoint, bar)
                self._rounds(stored, done, checkpoint, bar)
        checkpoint.remove()
        criterion.seconds = time.perf_counter() - self.started
        return {group.name: _over_processes(group.moments) for group in self.groups}

    def _check_alike(self, done: int) -> None:
        """Check that all processes go on from the same batch; otherwise they would wait for each other for ever."""
        reached = torch.tensor([[done, *(len(group.spreads) for group in self.groups)]], dtype=torch.float64)
        if (rows_of_all_processes(reached) != reached).any():
            raise CheckpointError(
                f"{self.criterion.label}: the processes' partial scores ({self.criterion.partial_file}.*) are not of "
                "one batch; delete them to start again"
            )

    def _stored(self, data: Iterable[Any]) -> Iterator[_Batch]:
        first = 0
        for inputs, targets, size in batches(self.model, data, self.criterion.images, self.criterion.label):
            yield _Batch(inputs, targets, (first + torch.arange(size)) * world_size() + process())
            first += size

    def _pilot(self, stored: Sequence[_Batch], checkpoint: ScoreCheckpoint, bar: Progress) -> None:
        """Find out where coalitions matter, as far as an interrupted run has not."""
        for number, batch in enumerate(stored):
            for group in self.groups:
                if number == len(group.spreads):
                    with all_or_none():
                        group.pilot(batch)
                    self.criterion.passes += group.pilot_cost * batch.size / max(self.images, 1)
                bar.advance(group.pilot_cost * batch.size)
            checkpoint.save(0)
        for group in self.groups:
            group.share_out()

    def _rounds(self, stored: Sequence[_Batch], done: int, checkpoint: ScoreCheckpoint, bar: Progress) -> None:
        for number, (round_, batch) in enumerate(itertools.product(range(self.criterion.rounds), stored)):
            if number >= done:
                if number and self._spent():
                    break
                for group in self.groups:
                    if group.open:
                        with all_or_none():
                            played = group.play(round_, batch)
                        self.criterion.passes += group.cost * played / max(self.images, 1)
                self._settle()
                checkpoint.save(number + 1)
            bar.advance(sum(group.cost for group in self.groups) * batch.size)

    def _settle(self) -> None:
        """Close the groups of which the lowest units are known well enough."""
        if self.criterion.remove is None:
            return
        for group in self.groups:
            remove = round(self.criterion.remove * len(group.moments.count))
            if group.open and 0 < remove < len(group.moments.count):
                unsure = _over_processes(group.moments).undecided(remove, self.criterion.confidence)
                group.open = unsure > (1 - self.criterion.required_certainty) * remove

    def _spent(self) -> bool:
        """Return whether a limit is reached, or nothing is open; the same on all processes."""
        criterion = self.criterion
        over = criterion.max_seconds is not None and time.perf_counter() - self.started >= criterion.max_seconds
        over = over or (criterion.max_passes is not None and criterion.passes >= criterion.max_passes)
        over = over or not any(group.open for group in self.groups)
        return bool(sum_over_processes(torch.tensor(float(over), dtype=torch.float64)) > 0)


@dataclass(frozen=True)
class _Batch:
    """A calibration batch of this process, and where its images stand among those of all processes."""

    inputs: Any
    targets: Any
    positions: Tensor

    @property
    def size(self) -> int:
        return len(self.positions)


class _GroupRun:
    """What is known of one group so far; costs are in forward passes over an image."""

    def __init__(
        self, criterion: Shapley, model: nn.Module, structure: Structure, group: ChannelGroup, behind: float
    ) -> None:
        self.criterion = criterion
        self.name = group.name
        self.game = ChannelGame(model, structure, group, criterion.payoff, criterion.label)
        self.moments = RunningMoments.of(group.size)
        self.open = True
        self.spreads: list[Tensor] = []  # of the batches that the pilot has seen
        self.expected = torch.zeros(0)
        self.runs = 0 if criterion.estimator == "exact" else criterion.pilot
        # One pass of recording, then the runs of the part behind.
        self.cost = 1 + criterion.evaluations(group.size) * behind
        self.pilot_cost = 1 + self.runs * behind if self.runs else 0.0

    def pilot(self, batch: _Batch) -> None:
        """Measure for each image of a batch how much its payoffs vary."""
        if not self.runs or not batch.size:
            self.spreads.append(torch.ones(batch.size, dtype=torch.float64))
            return
        game = self.game.on(batch.inputs, batch.targets, batch.size)
        order = self._uniform("pilot", batch.positions, 0 * batch.positions, game.players).argsort(dim=1)
        self.spreads.append(importance_sampling.spread(game, order, self.runs, self.criterion.stay(game.players)))

    def share_out(self) -> None:
        """Decide how often a round should play each image of all processes."""
        own = torch.cat(self.spreads)
        positions = torch.arange(len(own), dtype=torch.float64) * world_size() + process()
        rows = rows_of_all_processes(torch.stack([positions, own], dim=1))
        self.expected = importance_sampling.expected_copies(rows[rows[:, 0].argsort(), 1])

    def play(self, round_: int, batch: _Batch) -> int:
        """Play one round on a batch, with as many copies of each image as are due; at most one batch at a time.

        Returns:
            The number of image copies that were played.
        """
        stream = f"round {round_}"
        behind_the_last = torch.tensor([len(self.expected)])
        offset = self._uniform(stream, behind_the_last, 0 * behind_the_last, 1).item()
        turns = importance_sampling.copies(self.expected, offset)[batch.positions]
        rows = torch.arange(batch.size).repeat_interleave(turns)
        copy = torch.arange(len(rows)) - (turns.cumsum(0) - turns)[rows]
        parts = -(-len(rows) // max(batch.size, 1))
        for part, which in zip(rows.chunk(parts), copy.chunk(parts), strict=True) if parts else ():
            inputs, targets = rows_of((batch.inputs, batch.targets), batch.size, part)
            draws = self._uniform(stream, batch.positions[part], which, len(self.moments.count) + 1)
            contributions = self.criterion.sample(self.game.on(inputs, targets, len(part)), draws)
            self.moments.add(contributions / self.expected[batch.positions[part], None], 1 / self.expected.min().item())
        return len(rows)

    def _uniform(self, stream: str, positions: Tensor, copies: Tensor, numbers: int) -> Tensor:
        """Return uniform random numbers (images, numbers); an image's are its own, whatever else is drawn anywhere."""
        key = [self.criterion.seed, zlib.crc32(f"{self.name}: {stream}".encode())]
        seeds = [[*key, *image] for image in zip(positions.tolist(), copies.tolist(), strict=True)]
        return torch.from_numpy(np.stack([np.random.default_rng(seed).random(numbers) for seed in seeds]))


def _over_processes(moments: RunningMoments) -> RunningMoments:
    count, total, squares = sum_over_processes(torch.stack([moments.count, moments.total, moments.squares]))
    ranges = rows_of_all_processes(torch.tensor([[moments.low, moments.high]], dtype=torch.float64))
    return RunningMoments(count, total, squares, ranges[:, 0].min().item(), ranges[:, 1].max().item())


def suffix_shares(structure: Structure) -> dict[str, float]:
    """Return for each layer the share of the model's MACs that come after it in forward order.

    Args:
        structure: the channel groups.
    """
    costs = {name: cost.macs for name, cost in structure.layer_costs().items()}
    left, total = sum(costs.values()), sum(costs.values()) or 1
    shares = {}
    for layer in structure.layers:
        left -= costs.get(layer.name, 0)
        shares[layer.name] = left / total
    return shares
