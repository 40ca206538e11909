"""The course of a search: trials begin, end, and are told to the study; the best are trained again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pqc.errors import ScheduleError, TrainingError
from pqc.schedule import Schedule
from pqc.search.ranking import Point, best
from pqc.search.space import Value
from pqc.search.trials import Executor, Outcome, Task, said

if TYPE_CHECKING:
    from pqc.search.study import Study

HOPELESS = 3
"""A search ends where so many trials fail before any has ended well."""
FINALISTS = "finalists"


class Listener(Protocol):
    """Who is told how a search goes."""

    def trial(self, point: Point, done: int, total: int, best: Point | None) -> None:
        """A trial ended; `best` is the best in the first objective so far."""

    def finalist(self, number: int, seed: int, outcome: Outcome) -> None:
        """A finalist was trained with another seed."""


def drive(study: Study, executor: Executor, listener: Listener) -> None:
    """Do all trials of a study that are left.

    Raises:
        TrainingError: none of the first trials could be trained; says why.
    """
    for task, outcome in executor.outcomes(_tasks(study)):
        study.tell(task.number, outcome)
        points = study.points()
        ended = [point for point in points if point.state != "running"]
        leading = best(points, study.request.objectives, 1)
        point = next(one for one in ended if one.number == task.number)
        listener.trial(point, len(ended), study.request.file.trials, leading[0] if leading else None)
        _refuse_hopeless(study, ended)


def _tasks(study: Study) -> Iterator[Task]:
    """What was begun and did not end, then new trials. A point that is no schedule ends at once, as failed."""
    for number, params in _trials(study):
        try:
            plan = study.request.resolve(params)
        except ScheduleError as error:
            study.tell(number, Outcome("failed", error=said(error)))
            _refuse_hopeless(study, study.points())
            continue
        yield Task(number, study.folder(number), plan.text())


def _trials(study: Study) -> Iterator[tuple[int, dict[str, Value]]]:
    yield from list(study.unfinished())
    while not study.is_over():
        yield study.ask()


def _refuse_hopeless(study: Study, ended: list[Point]) -> None:
    if len(ended) >= HOPELESS and all(point.state == "failed" for point in ended):
        place = str(study.folder(ended[0].number))
        raise TrainingError(f"the first {len(ended)} trials failed: {ended[0].error}", at=place)


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained with several seeds.

    Args:
        number: of the trial.
        metrics: by seed.
    """

    number: int
    metrics: Mapping[int, Mapping[str, float]]

    def mean(self, name: str) -> float:
        """The mean of a metric over the seeds."""
        return sum(found[name] for found in self.metrics.values()) / len(self.metrics)

    def record(self) -> dict[str, Any]:
        """The finalist, ready for JSON."""
        return asdict(self)


def retrain(study: Study, executor: Executor, listener: Listener) -> list[Finalist]:
    """Train the best trials again with other seeds; the best by its mean comes first.

    A finalist whose mean breaks a constraint, or that fails with a seed, comes last.
    """
    wanted = study.request.file.finalists
    chosen = best(study.points(), study.request.objectives, wanted.top)
    plans = {point.number: study.request.resolve(point.params) for point in chosen}
    found = {point.number: {plans[point.number].training.seed: point.metrics} for point in chosen}
    failed: set[int] = set()
    for task, outcome in executor.outcomes(_retrainings(study, plans, wanted.seeds)):
        seed = int(task.folder.name.rpartition("-")[2])
        listener.finalist(task.number, seed, outcome)
        if outcome.state == "complete":
            found[task.number][seed] = outcome.metrics
        else:
            failed.add(task.number)
    finalists = [Finalist(number, metrics) for number, metrics in found.items()]
    return sorted(finalists, key=lambda one: _rank(study, one, one.number in failed))


def _rank(study: Study, finalist: Finalist, failed: bool) -> tuple[bool, float]:
    first = study.request.objectives[0]
    broken = any(one.violation(finalist.mean(one.name)) > 0 for one in study.request.constraints)
    sign = -1 if first.direction == "maximize" else 1
    return failed or broken, sign * finalist.mean(first.name)


def _retrainings(study: Study, plans: Mapping[int, Schedule], seeds: int) -> Iterator[Task]:
    for number, plan in plans.items():
        first = plan.training.seed + 1
        for seed in range(first, first + seeds):
            training = plan.training.model_copy(update={"seed": seed})
            folder = study.place.folder / FINALISTS / f"{number:04}-seed-{seed}"
            yield Task(number, folder, plan.model_copy(update={"training": training}).text(), in_study=False)


def winner(study: Study, finalists: Iterable[Finalist]) -> int | None:
    """The number of the trial that won, or None where none keeps the constraints."""
    first = next(iter(finalists), None)
    if first is not None:
        return first.number
    leading = best(study.points(), study.request.objectives, 1)
    return leading[0].number if leading else None
