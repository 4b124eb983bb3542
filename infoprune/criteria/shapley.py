"""Shapley values of channels: the second half of method B.

After Chen & Wang, "An Effective Information Theoretic Framework for Channel Pruning", arXiv 2408.16772 and IEEE TNNLS
2024. This is a *reconstruction*.

- The paper's: Shapley values evaluate the contribution of a layer's channels, and the least important channels are
  discarded.
- From lineage (Ancona et al., arXiv 2006.01795; Adamczewski et al., arXiv 2407.15875): the players are the channels
  of one layer, an absent channel's activation is zero, only the network behind the layer is run again, small
  coalitions can be left out.
- Ours: a bounded payoff, a permutation for each image, coupled layers as one set of players, the intervals and the
  stopping rule.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.criteria import coalitions
from infoprune.criteria.calibration import batches, evaluating
from infoprune.criteria.channel_game import ChannelGame
from infoprune.criteria.coalitions import EXACT_LIMIT, Tally
from infoprune.criteria.criterion import CRITERIA, Criterion, Scores
from infoprune.criteria.distributed import all_or_none, process, rows_of_all_processes, sum_over_processes, world_size
from infoprune.criteria.objective import PAYOFFS, get_objective
from infoprune.criteria.partial import PartialScores
from infoprune.criteria.progress import Progress
from infoprune.errors import ConfigurationError, DataError
from infoprune.registry import check_choice, check_count, check_number

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure

ESTIMATORS = ("antithetic", "permutation", "complementary", "exact")


@CRITERIA.register("shapley")
@dataclass(kw_only=True)
class Shapley(Criterion):
    """What each channel contributes to the network's payoff, on average over coalitions of its layer's channels.

    The players are the units of one group; all other groups are whole. An absent unit's activations (behind
    normalisation and activation function) are zero in every layer of the group, as if it had been removed.

    Cost for a group of n units and one round, in runs of the network behind the group's first layer for each image:
    ``antithetic`` 2 n (1 - least), ``permutation`` n (1 - least), ``complementary`` 2 (n + 1), ``exact`` 2 ** n; and
    one forward pass for each batch. Every image draws its own coalitions, so many of them share a batch; memory is
    bounded by one batch and its activations.

    Args:
        payoff: ``"probability"`` of the true class (bounded), ``"accuracy"``, ``"log_probability"`` (minus
            cross-entropy), the import path of a function, or a function of (outputs, targets) that returns one value
            for each image.
        estimator: ``"antithetic"``: a permutation and its reverse; ``"permutation"``; ``"complementary"``: random
            coalitions and their complements; ``"exact"``: all coalitions, for at most 12 units.
        least: Size-restricted variant: coalitions keep at least this share of the units. Pruning never visits small
            coalitions; the result is no longer a Shapley value. For the two permutation estimators.
        images: Number of calibration images over all processes; kept in memory.
        rounds: How many times each image is played.
        confidence: Probability with which all intervals of a group hold together.
        remove: If given, a group is finished early once it is settled which share of its units scores lowest.
        settled: How much of that share has to be certain.
        max_passes: Stop after so many forward passes over the images, a partial run counting as its share of the MACs.
        max_seconds: Stop after so much time. Under either limit, the first batch is always played with every group.
        seed: Of the coalitions. An image's coalitions depend only on this, the group and the image's position.
        progress: Show a progress bar with the time left; by default if a terminal is attached.
        partial_file: Where to keep partial scores, batch by batch; an interrupted run with the same options goes on
            from there.

    After scoring, :attr:`intervals` holds the empirical-Bernstein half-width of each score, :attr:`passes` and
    :attr:`seconds` what it cost.

    Raises:
        DataError: no images or no targets.
        ConfigurationError: a payoff of the wrong shape or not finite, or a layer that cannot be observed.
    """

    payoff: str | Callable[[Any, Any], Tensor] = "probability"
    estimator: str = "antithetic"
    least: float = 0.0
    images: int = 512
    rounds: int = 1
    confidence: float = 0.95
    remove: float | None = None
    settled: float = 0.9
    max_passes: float | None = None
    max_seconds: float | None = None
    seed: int = 0
    progress: bool | None = None
    partial_file: str | None = None

    intervals: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    passes: float = field(default=0.0, init=False, repr=False, compare=False)
    seconds: float = field(default=0.0, init=False, repr=False, compare=False)

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice(self.label, "estimator", self.estimator, ESTIMATORS)
        check_number(self.label, "least", self.least, 0, 1 - 1e-6)
        check_count(self.label, "images", self.images, 1)
        check_count(self.label, "rounds", self.rounds, 1)
        check_number(self.label, "confidence", self.confidence, 0, 1 - 1e-9)
        check_number(self.label, "settled", self.settled, 0, 1)
        check_count(self.label, "seed", self.seed, 0)
        for option in ("remove", "max_passes", "max_seconds"):
            if getattr(self, option) is not None:
                check_number(self.label, option, getattr(self, option), 0, 1 if option == "remove" else float("inf"))
        if self.least and self.estimator in ("complementary", "exact"):
            raise ConfigurationError(
                f"{self.label}: least={self.least:g} restricts permutations; estimator {self.estimator!r} has none"
            )
        get_objective(self.payoff, PAYOFFS, self.label, "payoff")

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Group name -> (units,) mean contributions."""
        groups = [group for group in structure.prunable if structure.producers(group)]
        for group in groups:
            if self.estimator == "exact" and group.size > EXACT_LIMIT:
                raise ConfigurationError(
                    f"{self.label}: 'exact' plays all coalitions of at most {EXACT_LIMIT} units, and {group.name} has "
                    f"{group.size}; choose 'antithetic'"
                )
        tallies = _Run(self, model, structure, groups).play(data or ())
        self.intervals = {name: tally.half_width(self.confidence) for name, tally in tallies.items()}
        for name, tally in tallies.items():
            if not tally.count.all():
                raise DataError(
                    f"{self.label}: {int((tally.count == 0).sum())} units of {name} were never played with least="
                    f"{self.least:g}; give more images or rounds"
                )
        return {name: tally.mean for name, tally in tallies.items()}

    def sample(self, game: coalitions.Game, generator_seed: int, first_image: int) -> Tensor:
        """One round of a game: (images, players) contributions."""
        least = round(self.least * game.players)
        if self.estimator == "exact":
            return coalitions.exact(game)
        draws = _draws(game.images, game.players + 1, generator_seed, first_image)
        order = draws[:, :-1].argsort(dim=1)
        if self.estimator == "complementary":
            size = (draws[:, -1:] * (game.players + 1)).long()
            return coalitions.complementary(game, order.argsort(dim=1) < size)
        estimate = coalitions.antithetic if self.estimator == "antithetic" else coalitions.walk
        return estimate(game, order, min(least, game.players - 1))

    def evaluations(self, players: int) -> int:
        """How often one round runs the network behind a group of so many players."""
        steps = players - min(round(self.least * players), players - 1)
        return {
            "exact": 2**players,
            "antithetic": 2 * steps,
            "permutation": steps,
            "complementary": 2 * (players + 1),
        }[self.estimator]


def _draws(images: int, numbers: int, seed: int, first_image: int) -> Tensor:
    """Uniform random numbers (images, numbers) that depend on the image's position among all processes' images."""
    rows = []
    for image in range(images):
        position = (first_image + image) * world_size() + process()
        generator = torch.Generator().manual_seed((seed + position * 0x9E3779B97F4A7C15) % 2**63)
        rows.append(torch.rand(numbers, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


class _Run:
    """One scoring run: batches outside, groups inside, so that all groups are equally far at any time."""

    def __init__(self, how: Shapley, model: nn.Module, structure: Structure, groups: Sequence[ChannelGroup]) -> None:
        self.how = how
        self.model = model
        self.games = {group.name: ChannelGame(model, structure, group, how.payoff, how.label) for group in groups}
        self.tallies = {group.name: Tally.of(group.size) for group in groups}
        self.open = dict.fromkeys(self.games, True)
        shares = suffix_shares(structure)
        first = {group.name: structure.producers(group)[0][0].name for group in groups}
        # One pass of recording, then the runs of the part behind.
        self.cost = {group.name: 1 + how.evaluations(group.size) * shares[first[group.name]] for group in groups}

    def play(self, data: Iterable[Any]) -> dict[str, Tally]:
        """Play all rounds, or as many as the limits allow."""
        how, started = self.how, time.perf_counter()
        how.passes = 0.0
        partial = PartialScores(how.partial_file, how, self.model, self.tallies)
        done = partial.load()
        with evaluating(self.model), torch.no_grad():
            with all_or_none():
                stored = list(batches(self.model, data, how.images, how.label))
            images = sum(size for _, _, size in stored)
            with Progress(how.label, sum(self.cost.values()) * how.rounds * images, how.progress) as bar:
                for number, (round_, inputs, targets, size, first) in enumerate(_slices(stored, how.rounds)):
                    if number < done:
                        bar.advance(sum(self.cost.values()) * size)
                        continue
                    if number and self._spent(started):
                        break
                    for name, game in self.games.items():
                        if self.open[name]:
                            self._play(game, name, round_, inputs, targets, size, first)
                            how.passes += self.cost[name] * size / max(images, 1)
                        bar.advance(self.cost[name] * size)
                    self._settle()
                    partial.save(number + 1)
        partial.remove()
        how.seconds = time.perf_counter() - started
        return {name: _over_processes(tally) for name, tally in self.tallies.items()}

    def _play(
        self, game: ChannelGame, name: str, round_: int, inputs: Any, targets: Any, size: int, first: int
    ) -> None:
        with all_or_none():
            if size:
                seed = zlib.crc32(f"{self.how.seed}:{name}:{round_}".encode()) << 20
                self.tallies[name].add(self.how.sample(game.on(inputs, targets, size), seed, first))

    def _settle(self) -> None:
        """Close the groups of which the lowest units are known well enough."""
        if self.how.remove is None:
            return
        for name, tally in self.tallies.items():
            remove = round(self.how.remove * len(tally.count))
            if self.open[name] and 0 < remove < len(tally.count):
                unsure = _over_processes(tally).undecided(remove, self.how.confidence)
                self.open[name] = unsure > (1 - self.how.settled) * remove

    def _spent(self, started: float) -> bool:
        """Whether a limit is reached, or nothing is open; the same on all processes."""
        over = self.how.max_seconds is not None and time.perf_counter() - started >= self.how.max_seconds
        over = over or (self.how.max_passes is not None and self.how.passes >= self.how.max_passes)
        over = over or not any(self.open.values())
        return bool(sum_over_processes(torch.tensor(float(over), dtype=torch.float64)) > 0)


def _slices(stored: Sequence[tuple[Any, Any, int]], rounds: int) -> Iterable[tuple[int, Any, Any, int, int]]:
    """(round, inputs, targets, images, position of the first image) of every batch in every round."""
    for round_ in range(rounds):
        first = 0
        for inputs, targets, size in stored:
            yield round_, inputs, targets, size, first
            first += size


def _over_processes(tally: Tally) -> Tally:
    count, total, squares = sum_over_processes(torch.stack([tally.count, tally.total, tally.squares]))
    ranges = rows_of_all_processes(torch.tensor([[tally.low, tally.high]], dtype=torch.float64))
    return Tally(count, total, squares, ranges[:, 0].min().item(), ranges[:, 1].max().item())


def suffix_shares(structure: Structure) -> dict[str, float]:
    """Layer name -> share of the model's MACs that come behind it in forward order."""
    costs = {name: cost.macs for name, cost in structure.layer_costs().items()}
    left, total = sum(costs.values()), sum(costs.values()) or 1
    shares = {}
    for layer in structure.layers:
        left -= costs.get(layer.name, 0)
        shares[layer.name] = left / total
    return shares
