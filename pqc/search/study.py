"""A study: its trials in Optuna's storage, which is the single truth about them, and their files in a folder."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from pqc.errors import PqcError
from pqc.search import samplers
from pqc.search.ranking import Point, best, front
from pqc.search.request import Request
from pqc.search.space import Value
from pqc.search.trials import Outcome

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

JOURNAL, TRIALS = "journal.log", "trials"
REQUEST, IMPORTED, EXHAUSTED = "pqc:request", "pqc:imported", "pqc:exhausted"
OUTCOME = "pqc:outcome"
"""The attribute of a trial that holds metrics, seconds and error: one write, for each costs a disk's latency."""
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class Place:
    """Where a study is stored.

    Args:
        folder: of its files.
        url: of a database, or None for a journal in the folder.
    """

    folder: Path
    url: str | None = None

    @property
    def name(self) -> str:
        """Of the study in its storage."""
        return self.folder.resolve().name

    def storage(self) -> BaseStorage:
        """Open the storage.

        Raises:
            PqcError: there is no such database, or no driver for it.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if self.url is None:
            return JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return RDBStorage(self.url)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError) as error:
            kind = self.url.partition(":")[0]  # the rest may hold a password
            hint = "check --storage, and that the driver of the database is installed"
            raise PqcError(f"cannot open the storage ({kind}): {type(error).__name__}", hint=hint) from error

    def exists(self) -> bool:
        """Whether there is a study."""
        if self.url is None and not (self.folder / JOURNAL).exists():
            return False
        return self.name in optuna.get_all_study_names(self.storage())


class _Study(optuna.Study):
    """A study that remembers that a grid is exhausted, which Optuna would only tell its own loop."""

    def stop(self) -> None:
        self.set_user_attr(EXHAUSTED, True)


class Study:
    """The trials of a search.

    Args:
        place: where they are.
        request: what is searched.
    """

    def __init__(self, place: Place, request: Request) -> None:
        self.place, self.request = place, request
        storage = place.storage()
        directions = [one.direction for one in request.objectives]
        optuna.create_study(study_name=place.name, storage=storage, directions=directions, load_if_exists=True)
        self._study = _Study(place.name, storage)

    @classmethod
    def create(cls, place: Place, request: Request) -> Study:
        """Begin a study.

        Raises:
            PqcError: there is one already.
        """
        if place.exists():
            raise PqcError("there is a study already", at=str(place.folder), hint="--resume goes on with it")
        place.folder.mkdir(parents=True, exist_ok=True)
        study = cls(place, request)
        study._study.set_user_attr(REQUEST, request.fingerprint())
        return study

    @classmethod
    def resume(cls, place: Place, request: Request) -> Study:
        """Go on with a study, or begin it where there is none.

        Raises:
            PqcError: it was started with another space.
        """
        _drop_torn_line(place)
        if not place.exists():
            return cls.create(place, request)
        study = cls(place, request)
        known = study._study.user_attrs.get(REQUEST)
        if known is not None and known != json.loads(json.dumps(request.fingerprint())):
            changed = [key for key in known if known[key] != request.fingerprint().get(key)]
            raise PqcError(
                f"the study was started with other values of {', '.join(changed)}",
                at=str(place.folder),
                hint="run with what it was started with, or into another folder",
            )
        study._study.set_user_attr(REQUEST, request.fingerprint())
        return study

    @classmethod
    def read(cls, place: Place, request: Request) -> Study:
        """Look at a study that another search made.

        Raises:
            PqcError: there is none.
        """
        if not place.exists():
            raise PqcError("there is no study", at=str(place.folder), hint="give the folder of a `pqc search`")
        return cls(place, request)

    def ask(self) -> tuple[int, dict[str, Value]]:
        """Begin a trial: its number and its point."""
        self._study.sampler = self._sampler(len(self._frozen()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask()
            return trial.number, self.request.space.suggest(trial)

    def unfinished(self) -> Iterator[tuple[int, dict[str, Value]]]:
        """The trials that were begun and did not end; values that were not drawn yet are drawn now."""
        for frozen in self._frozen(TrialState.RUNNING):
            self._study.sampler = self._sampler(frozen.number)
            yield frozen.number, self.request.space.suggest(Trial(self._study, frozen._trial_id))

    def tell(self, number: int, outcome: Outcome) -> None:
        """End a trial."""
        frozen = self._frozen()[number]
        trial = Trial(self._study, frozen._trial_id)
        trial.set_user_attr(OUTCOME, asdict(outcome))
        complete = outcome.state == "complete"
        for name, violation in self._violations(outcome.metrics).items() if complete else ():
            trial.set_constraint(name, violation)
        values = [outcome.metrics[one.name] for one in self.request.objectives] if complete else None
        self._study.sampler = self._sampler(number)
        self._study.tell(number, values, STATES[outcome.state])

    def points(self) -> list[Point]:
        """All trials of this study, in the order of their numbers; not those that were imported."""
        own = [one for one in self._frozen() if IMPORTED not in one.user_attrs and one.state != TrialState.WAITING]
        return [self._point(frozen) for frozen in own]

    def front(self) -> list[Point]:
        """The trials that keep the constraints and that no other beats, the best in the first objective first."""
        return front(self.points(), self.request.objectives)

    def is_empty(self) -> bool:
        """Whether there is no trial yet, not even one that was imported."""
        return not self._frozen()

    def is_over(self) -> bool:
        """Whether no trial is to begin any more."""
        points, patience = self.points(), self.request.file.patience
        if len(points) >= self.request.file.trials or self._study.user_attrs.get(EXHAUSTED, False):
            return True
        if patience is None:
            return False
        newest = max((point.number for point in front(points, self.request.objectives)), default=math.inf)
        return sum(point.number > newest and point.state != "running" for point in points) >= patience

    def learn(self, other: Study) -> int:
        """Let the sampler know the complete trials of another study, and run the best of them again first.

        Returns:
            how many were taken: those that are points of this space and have all metrics.
        """
        known = [frozen for frozen in other._frozen(TrialState.COMPLETE) if self._takes(frozen)]
        for frozen in known:
            self._import(frozen)
        leading = best([self._point(frozen) for frozen in known], self.request.objectives, 1)
        if leading:
            self._study.enqueue_trial(leading[0].params)
        return len(known)

    def folder(self, number: int) -> Path:
        """Where the files of a trial are."""
        return self.place.folder / TRIALS / f"{number:04}"

    def optuna(self) -> optuna.Study:
        """The study as Optuna has it."""
        return self._study

    def _violations(self, found: Mapping[str, float]) -> dict[str, float]:
        """How far each constraint is broken, for samplers that ask."""
        told = self.request.file.sampler.name in samplers.CONSTRAINED
        return {str(one): one.violation(found[one.name]) for one in self.request.constraints if told}

    def _takes(self, frozen: FrozenTrial) -> bool:
        """Whether a trial of another study is a point of this space and has all metrics."""
        found = frozen.user_attrs.get(OUTCOME, {}).get("metrics", {})
        return self._fits(frozen.params) and all(name in found for name in self.request.names)

    def _import(self, frozen: FrozenTrial) -> None:
        found = frozen.user_attrs[OUTCOME]["metrics"]
        dimensions = [one for one in self.request.space.dimensions if one.name in frozen.params]
        made = optuna.trial.create_trial(
            params=dict(frozen.params),
            distributions={one.name: one.distribution() for one in dimensions},
            values=[found[one.name] for one in self.request.objectives],
            user_attrs={OUTCOME: frozen.user_attrs[OUTCOME], IMPORTED: True},
            constraints=self._violations(found),
        )
        self._study.add_trial(made)

    def _fits(self, params: dict[str, Any]) -> bool:
        """Whether a point of another space is one of this."""
        seen: dict[str, Value] = {}
        for one in self.request.space.dimensions:
            if one.is_active(seen):
                if one.name not in params or not one.holds(params[one.name]):
                    return False
                seen[one.name] = params[one.name]
        return seen.keys() == params.keys()

    def _point(self, frozen: FrozenTrial) -> Point:
        state = next((name for name, state in STATES.items() if state == frozen.state), "running")
        outcome = Outcome(**frozen.user_attrs.get(OUTCOME, {"state": "failed"}))
        found = outcome.metrics
        kept = all(one.name in found and one.violation(found[one.name]) <= 0 for one in self.request.constraints)
        complete = frozen.state == TrialState.COMPLETE
        values = tuple(found[one.name] for one in self.request.objectives) if complete else ()
        feasible = kept and bool(values)
        return Point(frozen.number, state, dict(frozen.params), values, found, feasible, outcome.seconds, outcome.error)

    def _frozen(self, *states: TrialState) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _sampler(self, trial: int) -> BaseSampler:
        file = self.request.file
        return samplers.sampler(file.sampler.name, file.sampler.options, self.request.space, file.seed, trial)


def _drop_torn_line(place: Place) -> None:
    """Cut off a line of the journal that a killed process did not write to its end: Optuna would read no further."""
    path = place.folder / JOURNAL
    if place.url is not None or not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
