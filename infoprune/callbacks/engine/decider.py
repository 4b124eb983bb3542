"""`Decider`: what an event of a fit removes, by the scores and the allocation that its options name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infoprune.allocation import Allocation, Auto, LatencyShare, Uniform
from infoprune.allocation.solve import Measure
from infoprune.callbacks.engine.located_network import LocatedNetwork
from infoprune.callbacks.engine.options import EngineOptions
from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.callbacks.engine.training_data import EXAMPLES, calibration_batches
from infoprune.criteria import Scores
from infoprune.decide import Decision, decide, goal
from infoprune.distributed import broadcast_from_first, on_all_ranks
from infoprune.errors import ConfigurationError, DataError
from infoprune.report.collect import UnprunedStats
from infoprune.structure import PruningPlan, Structure, check_plan

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Decider:
    """Score and decide in a fit.

    Args:
        options: what is pruned, how and how far.
        located: where the network is.

    Attributes:
        unpruned: the model before the first event; None until it is known.
        latency_ratio: with a latency budget, the share of the unpruned model's time, as measured at the last event.
    """

    def __init__(self, options: EngineOptions, located: LocatedNetwork) -> None:
        self.options = options
        self.located = located
        self.unpruned: UnprunedStats | None = None
        self.latency_ratio = 1.0
        self._calibration: Iterable[Any] | None = None  # of the event at hand

    @contextmanager
    def event(self) -> Iterator[None]:
        """Look at the same images throughout the block, and release them afterwards."""
        try:
            yield
        finally:
            self._calibration = None

    def ahead(self, trainer: pl.Trainer, module: pl.LightningModule, structure: Structure) -> PruningPlan:
        """Score with one batch and decide, so that what an event would refuse is refused before training.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            structure: of the network.

        Returns:
            What the fit may remove in the end, by scores of this process alone.
        """
        options, network = self.options, self.located.within(module)
        criterion, allocation = options.criterion, options.allocation
        batch: list[Any] | None = None
        if criterion.needs_data or (allocation.needs_data and not isinstance(allocation, Auto)):
            size = getattr(trainer.train_dataloader, "batch_size", None) or EXAMPLES
            images = min(size * trainer.world_size, options.calibration_images)
            batch = list(islice(self._data(trainer, module, images) or (), 1))
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            scores = criterion(network, structure, batch)
            if isinstance(allocation, Auto):
                allocation = Uniform(equal=True)  # what an event falls back on, see `PruningEngine`
            kind, keep = goal(options.target, structure)
            allocation = allocation.prepared(network, structure, batch, scores=scores, kind=kind, keep=keep)
            measure = self._measure(network, structure, repeats=3)
            return decide(
                network, structure, options.target, criterion, allocation, scores=scores, measure=measure
            ).plan

    def score(self, trainer: pl.Trainer, module: pl.LightningModule, structure: Structure) -> Scores:
        """Return this process's scores.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            structure: of the network.
        """
        with torch.compiler.set_stance("force_eager"):
            return self.options.criterion(self.located.within(module), structure, self._data(trainer, module))

    def alike(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        structure: Structure,
        scores: Scores,
        chosen: Allocation,
        fraction: float,
    ) -> Decision:
        """Decide by scores that are the same on all processes, and return the decision of the first; a collective call.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            structure: of the network.
            scores: the average of all processes' scores.
            chosen: how the groups share the cut.
            fraction: share of the whole cut to reach, in (0, 1].
        """
        allocation = on_all_ranks(
            lambda: self._prepare_allocation(trainer, module, structure, scores, chosen, fraction)
        )
        decision = on_all_ranks(lambda: self._choose(trainer, module, structure, scores, allocation, fraction))
        measured = decision.latency, decision.latency_error
        plan, (latency, error) = broadcast_from_first((decision.plan.to_dict(), measured))
        return replace(decision, plan=PruningPlan.from_dict(plan), latency=latency, latency_error=error)

    def _prepare_allocation(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        structure: Structure,
        scores: Scores,
        chosen: Allocation,
        fraction: float,
    ) -> Allocation:
        assert self.unpruned is not None
        kind, keep = goal(self.options.target, structure, fraction, self.unpruned.cost, self.unpruned.sizes)
        with torch.compiler.set_stance("force_eager"):
            return chosen.in_schedule(self.unpruned.sizes).prepared(
                self.located.within(module), structure, self._data(trainer, module), scores=scores, kind=kind, keep=keep
            )

    def _data(self, trainer: pl.Trainer, module: pl.LightningModule, images: int | None = None) -> Iterable[Any] | None:
        """Return calibration batches, if the criterion or the allocation looks at data.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
            images: how many; by default those of the event at hand, which are found once.
        """
        criterion, allocation = self.options.criterion, self.options.allocation
        if not criterion.needs_data and not allocation.needs_data:
            return None
        if images is None and self._calibration is not None:
            return self._calibration
        try:
            batches = calibration_batches(trainer, images or self.options.calibration_images)
            received = self.located.received(trainer, module, batches)
        except (ConfigurationError, DataError):  # a stream, or too few images
            if criterion.needs_data or not isinstance(allocation, Auto):
                raise
            return None
        if images is None:  # finding them has run the training step
            self._calibration = received
        return received

    def shown(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterable[Any] | None:
        """Return the images that decisions look at, as in training; None if they look at none.

        Args:
            trainer: the Trainer.
            module: its LightningModule.
        """
        data = self._data(trainer, module) if self.options.looks_at_data else None
        return getattr(data, "as_trained", data)

    def _choose(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        structure: Structure,
        scores: Scores,
        allocation: Allocation,
        fraction: float,
    ) -> Decision:
        target = self.options.target
        if (target.latency is not None or target.backend is not None) and not trainer.is_global_zero:
            return Decision(PruningPlan(), scores)  # one process measures while the others are idle
        assert self.unpruned is not None
        assert self.located.inputs is not None
        network = self.located.within(module)
        decision = decide(
            network,
            structure,
            target,
            self.options.criterion,
            allocation,
            fraction=fraction,
            reference=self.unpruned.cost,
            sizes=self.unpruned.sizes,
            scores=scores,
            measure=self._measure(network, structure),
        )
        with torch.compiler.set_stance("force_eager"), OutsideState(module).restored():
            check_plan(network, self.located.inputs, structure, decision.plan)
        return decision

    def _measure(self, network: nn.Module, structure: Structure, repeats: int | None = None) -> Measure | None:
        """Return a measure of widths for a latency budget: their share of the unpruned model's time.

        The unpruned model is gone after the first event: the shares of all events multiply.
        """
        if self.options.target.latency is None:
            return None
        backend = self.options.target.backend or "eager"
        return LatencyShare(network, structure, self.located.inputs, repeats, self.latency_ratio, backend)
