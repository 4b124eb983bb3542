"""Shapley values of channels: the second half of method B.

After Chen & Wang, "An Effective Information Theoretic Framework for Channel Pruning", arXiv 2408.16772 and IEEE TNNLS
2024. This is a *reconstruction*.

- The paper's: Shapley values evaluate the contribution of a layer's channels, and the least important channels are
  discarded.
- From lineage (Ancona et al., arXiv 2006.01795; Adamczewski et al., arXiv 2407.15875): the players are the channels
  of one layer, an absent channel's activation is zero, only the layers after it are run again, small
  coalitions can be left out.
- Ours: the payoff, the value of an absent channel, a permutation for each image, more of them for images on which
  the coalition matters, coupled layers as one set of players, the intervals and the stopping rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from infoprune.criteria.criterion import CRITERIA, Criterion, Scores
from infoprune.criteria.payoffs import PAYOFFS, get_objective
from infoprune.criteria.shapley import coalitions
from infoprune.criteria.shapley.coalitions import EXACT_LIMIT
from infoprune.criteria.shapley.scoring_run import ShapleyRun
from infoprune.errors import ConfigurationError, DataError
from infoprune.registry import check_choice, check_count, check_number

if TYPE_CHECKING:
    from infoprune.structure import Structure

ESTIMATORS = ("antithetic", "permutation", "complementary", "exact")
ABSENT = ("mean", "zero")
MIN_COALITION = 0.5
"""Default share of the units that stays in every coalition, for the two permutation estimators."""


@CRITERIA.register("shapley")
@dataclass(kw_only=True)
class Shapley(Criterion):
    """Compute each channel's mean contribution to the network's payoff over coalitions of its layer's channels.

    The players are the units of one group; all other groups are whole. An absent unit's activations (after
    normalisation and activation function) are replaced in every layer of the group. By default the replacement is
    their mean over images and positions, because the next batch norm adapts to a constant by recalibration or
    fine-tuning; or it is zero, as right after a cut.

    By default coalitions keep at least half of the units, so that the scores are those of a size-restricted variant;
    with ``min_coalition=0`` they are Shapley values. These defaults were chosen by accuracy on held-out training
    images (``benchmarks/results/criteria_choices.md``).

    Cost for a group of n units and one round, in runs of the layers after the group's first layer for each image:
    ``antithetic`` 2 n (1 - min_coalition), ``permutation`` n (1 - min_coalition), ``complementary`` 2 (n + 1),
    ``exact`` 2 ** n; and one forward pass for each batch. The means take one forward pass in total. Every image draws
    its own coalitions, so many coalitions share a batch; memory is bounded by one batch and its activations. Before the
    first round, pilot runs find the images on which the coalition matters. These are sampled several times per round,
    others not in every round (:mod:`~infoprune.criteria.shapley.importance_sampling`); the total is the number of
    images.

    Args:
        payoff: ``"fidelity"`` to the whole network's outputs (bounded, needs no targets, see
            :func:`~infoprune.criteria.payoffs.fidelity`), ``"probability"`` of the true class (bounded),
            ``"accuracy"``, ``"log_probability"`` (minus cross-entropy), the import path of a function, or a function of
            (outputs, targets) that returns one value for each image.
        estimator: ``"antithetic"``: a permutation and its reverse; ``"permutation"``; ``"complementary"``: random
            coalitions and their complements; ``"exact"``: all coalitions, for at most 12 units.
        absent: The value that replaces an absent unit's activations: their ``"mean"``, or ``"zero"``.
        min_coalition: Coalitions keep at least this share of the units, since pruning never visits small ones; by
            default 0.5 with the two permutation estimators, and 0 with the others, which allow only 0.
        images: Number of calibration images over all processes; kept in memory.
        rounds: How many times each image is sampled, on average over the images.
        pilot: Runs of the layers after the group's first layer, for each image, that decide how often to sample it; 0:
            all images equally often. ``exact`` samples all equally often.
        confidence: Probability that all intervals of a group hold at the same time.
        remove: If given, a group is finished early once it is certain which units belong to this lowest share.
        required_certainty: Fraction of that share that must be certain.
        max_passes: Stop after this many forward passes over the images; a partial run counts by its share of the MACs.
        max_seconds: Stop after this time. Under either limit, the pilot and the first batch are always run for
            every group.
        seed: Of the coalitions. An image's coalitions depend only on this, the group, the round and the image's
            position.
        progress: Show a progress bar with the time left; by default if a terminal is attached.
        partial_file: File for partial scores, batch by batch; an interrupted run with the same options continues
            from there.

    After scoring, :attr:`intervals` holds the empirical-Bernstein half-width of each score, :attr:`passes` and
    :attr:`seconds` the cost.

    Raises:
        DataError: no images, or no targets for a payoff that needs them.
        ConfigurationError: a payoff of the wrong shape or not finite, or a layer that cannot be observed.
    """

    payoff: str | Callable[[Any, Any], Tensor] = "fidelity"
    estimator: str = "antithetic"
    absent: str = "mean"
    min_coalition: float | None = None
    images: int = 512
    rounds: int = 1
    pilot: int = 4
    confidence: float = 0.95
    remove: float | None = None
    required_certainty: float = 0.9
    max_passes: float | None = None
    max_seconds: float | None = None
    seed: int = 0
    progress: bool | None = None
    partial_file: str | None = None
    least: InitVar[float | None] = None
    settled: InitVar[float | None] = None

    intervals: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    passes: float = field(default=0.0, init=False, repr=False, compare=False)
    seconds: float = field(default=0.0, init=False, repr=False, compare=False)

    needs_data: ClassVar[bool] = True
    as_trained: ClassVar[bool] = True  # a network that knows its training images by heart does without what it needs

    def __post_init__(self, least: float | None, settled: float | None) -> None:
        for old, new, value in (("least", "min_coalition", least), ("settled", "required_certainty", settled)):
            if value is not None:
                warnings.warn(f"{self.label}: {old} is now called {new}", DeprecationWarning, stacklevel=3)
                setattr(self, new, value)
        check_choice(self.label, "estimator", self.estimator, ESTIMATORS)
        check_choice(self.label, "absent", self.absent, ABSENT)
        check_number(self.label, "min_coalition", self.min_coalition or 0.0, 0, 1 - 1e-6)
        check_count(self.label, "images", self.images, 1)
        check_count(self.label, "rounds", self.rounds, 1)
        check_number(self.label, "confidence", self.confidence, 0, 1 - 1e-9)
        check_number(self.label, "required_certainty", self.required_certainty, 0, 1)
        check_count(self.label, "pilot", self.pilot, 0)
        check_count(self.label, "seed", self.seed, 0)
        for option in ("remove", "max_passes", "max_seconds"):
            if getattr(self, option) is not None:
                check_number(self.label, option, getattr(self, option), 0, 1 if option == "remove" else float("inf"))
        if self.min_coalition and self.estimator in ("complementary", "exact"):
            raise ConfigurationError(
                f"{self.label}: min_coalition={self.min_coalition:g} restricts permutations; estimator "
                f"{self.estimator!r} has none"
            )
        get_objective(self.payoff, PAYOFFS, self.label, "payoff")

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Return group name -> (units,) mean contributions."""
        groups = [group for group in structure.prunable if structure.producers(group)]
        for group in groups:
            if self.estimator == "exact" and group.size > EXACT_LIMIT:
                raise ConfigurationError(
                    f"{self.label}: 'exact' plays all coalitions of at most {EXACT_LIMIT} units, and {group.name} has "
                    f"{group.size}; choose 'antithetic'"
                )
        found = ShapleyRun(self, model, structure, groups).play(data or ())
        self.intervals = {name: moments.half_width(self.confidence) for name, moments in found.items()}
        for name, moments in found.items():
            if not moments.count.all():
                raise DataError(
                    f"{self.label}: {int((moments.count == 0).sum())} units of {name} were never played with "
                    f"min_coalition={self.min_coalition_share:g}; give more images or rounds"
                )
        return {name: moments.mean for name, moments in found.items()}

    def sample(self, game: coalitions.Game, draws: Tensor) -> Tensor:
        """Play one round: (images, players) contributions from (images, players + 1) uniform numbers."""
        if self.estimator == "exact":
            return coalitions.exact(game)
        order = draws[:, :-1].argsort(dim=1)
        if self.estimator == "complementary":
            size = (draws[:, -1:] * (game.players + 1)).long()
            return coalitions.complementary(game, order.argsort(dim=1) < size)
        estimate = coalitions.antithetic if self.estimator == "antithetic" else coalitions.permutation_marginals
        return estimate(game, order, self.stay(game.players))

    def stay(self, players: int) -> int:
        """Return how many players a sampled coalition has at least.

        Args:
            players: number of units of the group.
        """
        return min(round(self.min_coalition_share * players), players - 1)

    @property
    def min_coalition_share(self) -> float:
        """`min_coalition`, or what it is by default."""
        if self.min_coalition is not None:
            return self.min_coalition
        return MIN_COALITION if self.estimator in ("antithetic", "permutation") else 0.0

    def evaluations(self, players: int) -> int:
        """Return how often one round runs the network behind a group of so many players.

        Args:
            players: number of units of the group.
        """
        steps = players - self.stay(players)
        return {
            "exact": 2**players,
            "antithetic": 2 * steps,
            "permutation": steps,
            "complementary": 2 * (players + 1),
        }[self.estimator]
