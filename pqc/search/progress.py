"""What a person sees while a search goes: a bar on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pqc.search.ranking import Point
from pqc.search.trials import Outcome


def describe(point: Point, names: Sequence[str]) -> str:
    """A trial in words."""
    found = [f"{name.replace('_', ' ')} {value:.6g}" for name, value in zip(names, point.values, strict=False)]
    return "  ".join(found) or point.state


class Reporter:
    """Tells a console about the trials of a search.

    Args:
        console: where to write; standard error, so that standard output stays data.
        names: of the objectives.
        quiet: say nothing.
    """

    def __init__(self, console: Console, names: Sequence[str], *, quiet: bool = False) -> None:
        self._console, self._names, self._quiet = console, names, quiet
        self._bar: Progress | None = None

    def trial(self, point: Point, done: int, total: int, best: Point | None) -> None:
        """A trial ended."""
        leading = "none keeps the constraints yet" if best is None else describe(best, self._names)
        if self._quiet:
            return
        if self._console.is_terminal:
            self._live(f"best: {leading}", done, total)
            return
        line = f"trial {point.number}  {done}/{total}  {describe(point, self._names)}  best: {leading}"
        self._console.print(Text(line))

    def finalist(self, number: int, seed: int, outcome: Outcome) -> None:
        """A finalist was trained with another seed."""
        if not self._quiet:
            found = "  ".join(f"{name} {value:.6g}" for name, value in outcome.metrics.items()) or outcome.state
            self._console.print(Text(f"finalist {number}  seed {seed}  {found}"))

    def _live(self, leading: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._bar.start()
            self._bar.add_task("", total=total, completed=done - 1)
        self._bar.update(self._bar.task_ids[0], completed=done, description=leading)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
