"""Search over schedules: many runs, the best of them as a schedule file, and a report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqc import files
from pqc.errors import Interrupted, PqcError
from pqc.schedule import load as read_schedule
from pqc.search import budget, driver
from pqc.search import request as requests
from pqc.search.packages import require
from pqc.search.request import Request
from pqc.search.trials import Executor, InThisProcess
from pqc.workflows.job import RunOptions
from pqc.workflows.sources import Source
from pqc.workflows.trials import Trainer

if TYPE_CHECKING:
    from pqc.search.study import Place, Study

STUDY, BEST, SPACE = "study.json", "best.yaml", "space.yaml"


@dataclass(frozen=True)
class SearchOptions:
    """How a search works, as against what it looks for.

    Args:
        resume: go on with the study in the folder, or begin it where there is none.
        storage: the URL of a database for the study; None is a journal in the folder.
        scheduler: of Dask, for many workers: see `pqc.search.cluster`; None trains in this process.
        warm_start: the folder of a study to learn from.
        run: how each run works.
    """

    resume: bool = False
    storage: str | None = None
    scheduler: str | None = None
    warm_start: Path | None = None
    run: RunOptions = RunOptions(hls=False, verify_each=False)


def plan_search(
    source: Source, space: Path | str, schedule: str | None, settings: dict[str, str], least: float | None = None
) -> Request:
    """The search that a space file describes, or the one for a budget; checked before anything runs.

    Args:
        source: the model.
        space: a space file, or a budget such as `ebops=5000`.
        schedule: what is searched around, where the file does not say; with a budget, whose loss is taken.
        settings: keys of the schedule by `--set`.
        least: with a budget, what the metric must reach; the smallest such network is looked for.

    Raises:
        ScheduleError: with file, line and the nearest valid key.
        UsageError: no such budget.
    """
    base = schedule or source.schedule or "cs"
    if isinstance(space, Path):
        return requests.read(space, base, settings)
    loss = settings.get("training.loss") or read_schedule(base).training.loss
    return budget.request(space, least, loss, settings)


def search(
    source: Source,
    request: Request,
    data: Path | None,
    folder: Path,
    options: SearchOptions,
    listener: driver.Listener,
) -> dict[str, Any]:
    """Train many schedules and write the best one, `best.yaml`, with `study.json` and `report.html`, to `folder`.

    Raises:
        PqcError: anything that stops the search, with a place and a hint; also where no trial keeps the constraints.
    """
    from pqc.search.study import Place

    if options.scheduler is not None:  # workers have working folders of their own
        folder, source = folder.resolve(), replace(source, path=source.path.resolve())
        data = None if data is None else data.resolve()
    study = _open(Place(folder, options.storage), request, options)
    files.write_text(folder / SPACE, request.text())
    try:
        with _executor(source, request, data, study.place, options) as executor:
            driver.drive(study, executor, listener)
            finalists = driver.retrain(study, executor, listener)
    except (KeyboardInterrupt, Interrupted):
        ended = sum(point.state != "running" for point in study.points())
        raise Interrupted(
            f"stopped after {ended} of {request.file.trials} trials",
            at=str(folder),
            hint="the same command with --resume goes on from there",
        ) from None
    return _conclude(study, source, data, finalists)


def _open(place: Place, request: Request, options: SearchOptions) -> Study:
    from pqc.search.study import Study

    other = None
    if options.warm_start is not None:
        other = Study.read(replace(place, folder=options.warm_start, url=None), request)
    study = Study.resume(place, request) if options.resume else Study.create(place, request)
    if other is not None and study.is_empty():
        study.learn(other)
    return study


@contextmanager
def _executor(
    source: Source, request: Request, data: Path | None, place: Place, options: SearchOptions
) -> Iterator[Executor]:
    """What trains: this process, or workers."""
    from pqc.search.watch import Watch

    pruner = request.file.pruner
    watch = None if pruner is None else Watch(place, pruner, request.objectives[0].name)
    trainer = Trainer(source, data, options.run, tuple(request.names), watch)
    if options.scheduler is None:
        yield InThisProcess(trainer)
        return
    require("distributed", "cluster")
    from pqc.search import cluster

    with cluster.connect(options.scheduler) as client:
        yield cluster.OnWorkers(client, trainer)


def _conclude(study: Study, source: Source, data: Path | None, finalists: list[driver.Finalist]) -> dict[str, Any]:
    """Write what the search found.

    Raises:
        PqcError: no trial keeps the constraints.
    """
    from pqc.report import study as page

    folder, number = study.place.folder, driver.winner(study, finalists)
    found = _record(study, source, data, finalists, number)
    files.write_text(folder / STUDY, json.dumps(found, indent=1))
    page.write(folder, found)
    if number is None:
        bounds = " and ".join(str(one) for one in study.request.constraints) or "having a value"
        raise PqcError(
            f"none of {len(found['trials'])} trials keeps {bounds}",
            at=str(folder / STUDY),
            hint="loosen the constraints, widen the space, or let it run on with --resume and more --trials",
        )
    files.write_bytes(folder / BEST, (study.folder(number) / "schedule.yaml").read_bytes())
    return found


def _record(
    study: Study, source: Source, data: Path | None, finalists: list[driver.Finalist], winner: int | None
) -> dict[str, Any]:
    from pqc.search.importance import importances

    request = study.request
    return {
        "model": source.name,
        "data": str(data or source.data),
        "metric": request.metric,
        "objectives": [vars(one) for one in request.objectives],
        "constraints": [str(one) for one in request.constraints],
        "parameters": [one.record() for one in request.space.dimensions],
        "front": [point.number for point in study.front()],
        "winner": winner,
        "importances": importances(study),
        "finalists": [one.record() for one in finalists],
        "trials": [point.record() for point in study.points()],
    }
