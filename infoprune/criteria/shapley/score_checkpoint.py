"""Partial scores on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.criteria.shapley.running_moments import RunningMoments
from infoprune.distributed import process, world_size
from infoprune.errors import CheckpointError
from infoprune.files import written_whole

if TYPE_CHECKING:
    from infoprune.criteria.criterion import Criterion


class ScoreCheckpoint:
    """What a scoring run knows so far and how many batches it has played; primitives and tensors only.

    Args:
        path: Where to keep them (on several processes each has a file of its own), or None to keep nothing.
        criterion: Whose options have to be the same for a run to go on.
        model: Whose weights have to be the same.
        moments: What to keep and to fill in.
        spreads: The pilot's findings on each batch, also kept and filled in.

    Raises:
        CheckpointError: the folder cannot be written, or the file is damaged or belongs to another run.
    """

    def __init__(
        self,
        path: str | None,
        criterion: Criterion,
        model: nn.Module,
        moments: Mapping[str, RunningMoments],
        spreads: Mapping[str, list[Tensor]],
    ) -> None:
        self.path = None if path is None else Path(f"{path}.{process()}" if world_size() > 1 else path)
        self.moments = moments
        self.spreads = spreads
        if self.path is None:
            return
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK):
            raise CheckpointError(
                f"partial scores cannot be kept in {self.path}: its folder does not exist or is read-only"
            )
        ignored = {"partial_file", "progress", "max_seconds", "max_passes"}
        options = {name: str(value) for name, value in criterion.options.items() if name not in ignored}
        weights = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
        sizes = {name: len(one.count) for name, one in moments.items()}
        self.run: dict[str, Any] = {"options": options, "weights": f"{weights:.9e}", "groups": sizes}

    def load(self) -> int:
        """Fill the moments from the file and return how many batches they have seen; 0 without a file."""
        if self.path is None or not self.path.exists():
            return 0
        try:
            kept = torch.load(self.path, weights_only=True)
            run, stored, spreads, seen = kept["run"], kept["tallies"], kept["spreads"], int(kept["batches"])
        except (
            OSError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise CheckpointError(
                f"{self.path} does not hold partial scores ({error}); delete it to start again"
            ) from error
        for name, expected in self.run.items():
            if run.get(name) != expected:
                raise CheckpointError(
                    f"{self.path} belongs to another scoring run: its {name} are {run.get(name)}, not {expected}; "
                    "delete it or choose another partial_file"
                )
        for name, (count, total, squares, low, high) in stored.items():
            moments = self.moments[name]
            moments.count, moments.total, moments.squares, moments.low, moments.high = count, total, squares, low, high
            self.spreads[name][:] = spreads[name]
        return seen

    def save(self, batches: int) -> None:
        """Save the moments after some batches; the file is whole at any time.

        Args:
            batches: number of batches that were played.
        """
        if self.path is None:
            return
        stored = {name: [t.count, t.total, t.squares, t.low, t.high] for name, t in self.moments.items()}
        kept = {"run": self.run, "tallies": stored, "spreads": dict(self.spreads), "batches": batches}
        with written_whole(self.path) as scratch:
            torch.save(kept, scratch)

    def remove(self) -> None:
        """Remove the file when the run is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
