"""A progress bar for scoring that takes a while."""

from __future__ import annotations

import sys
from types import TracebackType

from infoprune.distributed import process
from infoprune.random_state import undisturbed

with undisturbed():  # rich draws a random number when it is imported
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress


class Progress:
    """Show how much of a known amount of work is done, and the time left at the speed measured so far.

    Args:
        title: What is going on.
        total: The work, in any unit that is proportional to time.
        show: Whether to show it; None shows it where standard error is a terminal. Only the first process ever does.
    """

    def __init__(self, title: str, total: float, show: bool | None) -> None:
        wanted = sys.stderr.isatty() if show is None else show
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not wanted or process() != 0,
            # Partial runs of early and late layers differ in speed: average over minutes, not seconds.
            speed_estimate_period=600,
        )
        self._task = self._bar.add_task(title, total=total)

    def advance(self, work: float) -> None:
        """Count work as done.

        Args:
            work: work done since the last call.
        """
        self._bar.advance(self._task, work)

    def expect(self, work: float) -> None:
        """Change the total work.

        Args:
            work: work to add; negative to take off.
        """
        self._bar.update(self._task, total=(self._bar.tasks[0].total or 0.0) + work)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
