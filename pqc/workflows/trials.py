"""One training of a search, wherever it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pqc import files
from pqc.errors import Interrupted, TrainingError
from pqc.schedule import Schedule
from pqc.search.objectives import measured
from pqc.search.trials import Outcome, Task, said
from pqc.training.trainer import CHECKPOINT
from pqc.workflows.job import RunOptions
from pqc.workflows.running import run
from pqc.workflows.sources import Source

if TYPE_CHECKING:
    from pqc.search.watch import Watch


@dataclass(frozen=True)
class Trainer:
    """Does the tasks of one search.

    Args:
        source: the model.
        data: where its data are, or None for those that it brings.
        options: of each run; it always goes on from a checkpoint, and writes no page.
        names: the metrics to bring back.
        watch: compares a trial with others while it trains, or None.
    """

    source: Source
    data: Path | None
    options: RunOptions
    names: tuple[str, ...]
    watch: Watch | None = None

    def __call__(self, task: Task) -> Outcome:
        """Train, or say what became of the task if it is done already.

        Raises:
            PqcError: what would stop every other trial, too.
        """
        outcome = Outcome.load(task.folder)
        if outcome is None:
            outcome = self._train(task)
            outcome.save(task.folder)
            (task.folder / CHECKPOINT).unlink(missing_ok=True)
        return outcome

    def _train(self, task: Task) -> Outcome:
        started = time.perf_counter()
        plan = Schedule.model_validate(yaml.safe_load(task.schedule))
        files.write_text(task.folder / "schedule.yaml", task.schedule)
        options = replace(self.options, resume=True, report=False)
        listener = _Stages() if self.watch is None or not task.in_study else _Watched(self.watch, task.number)
        try:
            summary = run(self.source, plan, self.data, task.folder, options, listener)
            found = measured(summary, self.names)
        except Interrupted:
            raise
        except TrainingError as error:
            return Outcome("failed", seconds=time.perf_counter() - started, error=said(error))
        except Hopeless:
            return Outcome("pruned", seconds=time.perf_counter() - started)
        return Outcome("complete", found, time.perf_counter() - started)


class Hopeless(Exception):
    """A trial is worse than others were at the same epoch."""


class _Stages:
    """Listens to a run and does nothing."""

    def stage(self, name: str) -> None:
        """A part of the run begins."""

    def expansion(self, words: str, done: int, share: float) -> None:
        """A search of the run goes on."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended."""


class _Watched(_Stages):
    """Ends a run that is worse than others were at the same epoch."""

    def __init__(self, watch: Watch, number: int) -> None:
        self._trial = watch.trial(number)

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended."""
        if self._trial.is_hopeless(record, done):
            raise Hopeless
