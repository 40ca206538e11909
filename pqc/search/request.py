"""A space file: what a search varies, what it wants, and how it goes about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from pqc import metrics, schedule
from pqc.errors import ScheduleError
from pqc.options import nearest
from pqc.reference_config import detects, tuning
from pqc.schedule import Schedule
from pqc.schedule_sections import Section
from pqc.search import objectives, samplers
from pqc.search.objectives import Constraint, Objective
from pqc.search.packages import require
from pqc.search.space import SCHEDULE, Parameter, Params, Space, written
from pqc.yaml_file import Document, value

HINT = "docs/search.md shows a whole space file"
MAX_FILE_BYTES = 1_000_000


def _named(content: object) -> object:
    return {"name": content} if isinstance(content, str) else content


def _directed(content: object) -> object:
    names = [content] if isinstance(content, str) else content
    return dict.fromkeys(names) if isinstance(names, list) else names


Directions = Annotated[dict[str, Literal["maximize", "minimize"] | None], BeforeValidator(_directed)]


class Tool(Section):
    """A sampler or a pruner: its name, and options of Optuna's class."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Finalists(Section):
    """The trials that are trained again with other seeds before a winner is named."""

    top: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[int, Field(ge=1)] = 2


class SpaceFile(Section):
    """A space file's keys.

    Args:
        schedule: what is searched around; of several names or files, one is chosen in each trial.
        set: keys of the schedule that are the same in every trial.
        parameters: keys of the schedule that vary.
        objectives: metrics, or metrics with `maximize` or `minimize`.
        constraints: bounds by metric, such as `>= 0.66`.
        sampler: by name, with options.
        pruner: likewise; null lets every trial end.
        trials: how many.
        patience: the search ends after so many trials that do not change the front; null: never.
        finalists: what is trained again.
        seed: of the samplers; that of the trainings is the schedule's.
    """

    schedule: Annotated[tuple[str, ...], BeforeValidator(lambda name: [name] if isinstance(name, str) else name)] = ()
    set: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    objectives: Directions = Field(default_factory=dict)
    constraints: dict[str, str] = Field(default_factory=dict)
    sampler: Annotated[Tool, BeforeValidator(_named)] = Tool(name="tpe")
    pruner: Annotated[Tool | None, BeforeValidator(_named)] = None
    trials: Annotated[int, Field(ge=1)] = 50
    patience: Annotated[int | None, Field(ge=1)] = None
    finalists: Finalists = Finalists()
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Request:
    """A search that has been checked: every corner of its space is a schedule.

    Args:
        file: the keys.
        bases: the schedules that are searched around.
        settings: what is the same in every trial, as `--set` gives it.
        places: where each parameter stands, and each key of `set`, for errors.
        label: how errors name the file.
    """

    file: SpaceFile
    bases: tuple[str, ...]
    settings: Mapping[str, str]
    places: Mapping[str, str]
    label: str

    @cached_property
    def space(self) -> Space:
        """The dimensions, the choice of a schedule first."""
        choice = {SCHEDULE: Parameter(choice=self.bases)} if len(self.bases) > 1 else {}
        return Space.of({**choice, **self.file.parameters})

    @cached_property
    def metric(self) -> str:
        """What the loss is measured by."""
        return metrics.metric_name(self.resolve(next(self.space.corners())[1]).training.loss)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What is improved: as the file says, or the task's own metric."""
        wanted = self.file.objectives or {self.metric: None}
        return tuple(Objective(name, objectives.direction(name, self.metric, given)) for name, given in wanted.items())

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The bounds to keep."""
        return tuple(Constraint.parse(name, text) for name, text in self.file.constraints.items())

    @property
    def names(self) -> list[str]:
        """All metrics that objectives and constraints read."""
        found = [one.name for one in self.objectives] + [one.name for one in self.constraints]
        return list(dict.fromkeys(found))

    def with_trials(self, trials: int | None) -> Request:
        """The same search with another number of trials."""
        return self if trials is None else replace(self, file=self.file.model_copy(update={"trials": trials}))

    def resolve(self, params: Params, tried: str = "") -> Schedule:
        """The schedule of a point.

        Args:
            params: the point.
            tried: the parameter to blame where no other is.

        Raises:
            ScheduleError: the point is no schedule; names the parameter's line.
        """
        base = str(params.get(SCHEDULE, self.bases[0]))
        varied = self.space.settings(params)
        try:
            return schedule.read(base, {**self.settings, **varied})[0]
        except ScheduleError as error:
            key = (error.at or "").removeprefix("--set ")
            owner = next((one.name for one in self.space.dimensions if key in (one.name, *one.parameter.also)), tried)
            place = self.places.get(owner or key)
            raise ScheduleError(error.message, at=place or error.at, hint=error.hint) from error

    def fingerprint(self) -> dict[str, Any]:
        """What a study must have been started with to be resumed; the number of trials may change."""
        content = self.file.model_dump(mode="json", by_alias=True, exclude={"trials", "patience", "finalists"})
        return {**content, "schedule": [*self.bases], "set": dict(self.settings)}

    def text(self) -> str:
        """The space file with every default, as YAML."""
        content = self.file.model_dump(mode="json", by_alias=True)
        content |= {"schedule": [*self.bases], "set": {key: value(text, key) for key, text in self.settings.items()}}
        return "".join(f"{key}: {written(one)}\n" for key, one in content.items())


def read(path: Path, base: str, settings: Mapping[str, str]) -> Request:
    """Read a space file, or a config of the reference library with `hpo_parameters`, and check it.

    All that can be known before the first trial is checked: every key, every bound and choice, every metric.

    Args:
        path: the file.
        base: the schedule where the file names none.
        settings: keys of the schedule by `--set`, on top of the file's own.

    Raises:
        ScheduleError: with file, line, key and the nearest valid key.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ScheduleError("the file is too large for a space", at=str(path), hint=HINT)
    try:
        document = Document(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ScheduleError(f"cannot read the file: {error}", at=str(path), hint="is it a text file?") from error
    if not detects(document.content):
        return checked(document, document.content, base, settings)
    content, keys = tuning.search(document)
    return checked(document, content, str(path), settings, keys)


def checked(
    document: Document,
    content: Mapping[str, Any],
    base: str,
    settings: Mapping[str, str],
    keys: Mapping[str, list[str]] | None = None,
) -> Request:
    """The search that `content` describes.

    Args:
        document: where it stands, for errors.
        content: a space file's keys.
        base: see `read`; likewise `settings`.
        keys: where in the document parameters stand that are not under `parameters`.
    """
    require("optuna", "search")
    try:
        file = SpaceFile.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, document, keys or {}) from error
    fixed = {key: written(one) for key, one in file.set.items()}
    where = {name: ["parameters", name] for name in file.parameters} | dict(keys or {})
    where |= {name: ["set", name] for name in file.set if name not in settings}
    places = {name: document.find(key)[1] for name, key in where.items()}
    request = Request(file, file.schedule or (base,), {**fixed, **settings}, places, document.label)
    _check(request, document)
    return request


def _check(request: Request, document: Document) -> None:
    """Try every corner of the space, and all names.

    Raises:
        ScheduleError: with file and line.
    """
    file = request.file
    with _blaming(document, "parameters"):
        corners = list(request.space.corners())
        if not request.space.dimensions:
            raise ValueError("there is nothing to vary")
    for name, params in corners:
        request.resolve(params, name)
    with _blaming(document, "objectives"):
        assert request.objectives
    with _blaming(document, "constraints"):
        for one in request.constraints:
            objectives.refuse_unmeasured(one.name, request.metric)
    with _blaming(document, "sampler"):
        samplers.sampler(file.sampler.name, file.sampler.options, request.space, file.seed, 0)
    if file.pruner is not None:
        with _blaming(document, "pruner"):
            objectives.refuse_pruner(request.objectives, request.metric)
            samplers.pruner(file.pruner.name, file.pruner.options)


@contextmanager
def _blaming(document: Document, key: str) -> Iterator[None]:
    """Give what goes wrong inside its place in the file."""
    try:
        yield
    except ValueError as error:
        raise ScheduleError(f"'{key}': {error}", at=document.find([key])[1], hint=HINT) from error


def _refusal(error: ValidationError, document: Document, keys: Mapping[str, list[str]]) -> ScheduleError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    location = keys.get(".".join(location[1:2]), location)
    key, place = document.find(location)
    if first["type"] == "extra_forbidden":
        known = _keys(location)
        hint = f"known keys here: {', '.join(known)}"
        return ScheduleError(f"unknown key '{key}'{nearest(location[-1], known)}", at=place, hint=hint)
    return ScheduleError(f"'{key}': {first['msg'].removeprefix('Value error, ')[:500]}", at=place, hint=HINT)


def _keys(location: list[str]) -> list[str]:
    """The keys that are known where an unknown one stands."""
    kinds: dict[str, type[Section]] = {"parameters": Parameter, "sampler": Tool, "pruner": Tool}
    kinds["finalists"] = Finalists
    kind = SpaceFile if len(location) == 1 else kinds[location[0]]
    return [field.alias or name for name, field in kind.model_fields.items()]
