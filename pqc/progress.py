"""What a person sees while a run goes: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pqc.metrics import SHARES

WORDS = {
    "compress": "inserting quantizers and masks",
    "pretrain": "pretraining in float",
    "fit": "searching bit widths and masks",
    "train": "training",
    "finalize": "folding masks and weights",
    "hls": "writing, compiling and comparing the firmware (a minute or so)",
    "report": "writing the report",
}
PLAIN_LINES = 10


def describe(record: dict[str, Any]) -> str:
    """One epoch in words."""
    parts = [f"{record['stage']}", f"loss {record['loss']:.4f}"]
    parts += [f"{name.replace('_', ' ')} {100 * record[name]:.2f} %" for name in sorted(SHARES & record.keys())]
    parts.append(f"sparsity {100 * (1 - record['keep_ratio']):.1f} %")
    parts.append(f"{record['ebops']:,} EBOPs")
    return "  ".join(parts)


class Reporter:
    """Tells a console about the stages and epochs of a run.

    Args:
        console: where to write; standard error, so that standard output stays data.
        quiet: say nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        self._started = time.perf_counter()
        self._first_epoch: tuple[int, float] | None = None

    def stage(self, name: str) -> None:
        """A part of the run begins."""
        self.close()
        if not self._quiet:
            seconds = time.perf_counter() - self._started
            self._console.print(f"[dim]{seconds:6.1f} s[/dim]  {WORDS.get(name, name)}", highlight=False)

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._live(record, done, total)
        elif done == total or done % max(1, total // PLAIN_LINES) == 0:
            self._plain(record, done, total)

    def expansion(self, words: str, done: int, share: float) -> None:
        """A search has expanded so many nodes, the last of which is that far on the way to its goal."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._advance(f"expansion {done}", words, share)
        elif done % PLAIN_LINES == 0:
            self._console.print(f"          expansion {done}  {words}  {100 * share:.0f} % of the way", highlight=False)

    def _advance(self, title: str, words: str, share: float) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.fields[title]}"), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=False)
            self._bar.start()
            self._bar.add_task("", total=1.0, title=title)
        self._bar.update(self._bar.task_ids[0], completed=share, description=words, title=title)

    def _live(self, record: dict[str, Any], done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("epoch {task.completed}/{task.total}"),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._bar = Progress(*columns, console=self._console, transient=False)
            self._bar.start()
            # The clock starts at the first epoch seen, so that a resumed run does not promise too much.
            self._bar.add_task("", total=total, completed=done - 1)
        self._bar.update(self._bar.task_ids[0], completed=done, description=describe(record))

    def _plain(self, record: dict[str, Any], done: int, total: int) -> None:
        now = time.perf_counter()
        first = self._first_epoch or (done, now)
        self._first_epoch = first
        pace = (now - first[1]) / (done - first[0]) if done > first[0] else float(record["seconds"])
        left = f"{pace * (total - done):.0f} s left"
        self._console.print(f"          epoch {done}/{total}  {describe(record)}  {left}", highlight=False)

    def close(self) -> None:
        """End the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
