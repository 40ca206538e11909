"""Trials on many machines: Dask hands them out, and hands them out again where a worker dies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import distributed
from distributed import Client, WorkerPlugin
from pydantic import Field, ValidationError

from pqc.errors import PqcError, ScheduleError
from pqc.options import nearest
from pqc.schedule_sections import Section
from pqc.search.trials import Outcome, Run, Task
from pqc.yaml_file import Document

if TYPE_CHECKING:
    from pqc.workflows.trials import Trainer

HINT = "docs/search.md has recipes for clusters"
PLUGIN = "pqc-search"
DEATHS = 3
"""A trial that so many workers died of is failed: it may be what kills them."""
PATIENCE = "2s"
"""How long to wait for a trial before looking again for workers that came."""
SYSTEMS = {
    "slurm": "SLURMCluster",
    "htcondor": "HTCondorCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "local": "LocalCluster",
}


class ClusterFile(Section):
    """A cluster that a batch system gives.

    Args:
        system: which.
        workers: how many jobs are asked for.
        options: of dask-jobqueue's class, such as cores, memory, queue, walltime.
    """

    system: str
    workers: int = 1
    options: dict[str, Any] = Field(default_factory=dict)


@contextmanager
def connect(scheduler: str) -> Iterator[Client]:
    """A client of `local:4`, of a scheduler's address, or of the cluster that a file describes.

    Raises:
        PqcError: none of these, or nobody answers.
    """
    with dask.config.set({"distributed.scheduler.allowed-failures": DEATHS}):
        kind, _, rest = scheduler.partition(":")
        if kind == "local":
            with _local(scheduler, rest) as cluster, Client(cluster) as client:
                yield client
        elif "://" in scheduler:
            with _client(scheduler) as client:
                yield client
        else:
            with _submitted(Path(scheduler)) as cluster, Client(cluster) as client:
                yield client


def _local(scheduler: str, workers: str) -> Any:
    if not workers.isdecimal() or not int(workers):
        raise PqcError(f"no scheduler '{scheduler}'", hint="give local:4 for four processes on this machine")
    return distributed.LocalCluster(n_workers=int(workers), threads_per_worker=1, dashboard_address=None)


def _client(address: str) -> Client:
    try:
        return Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise PqcError(f"no scheduler answers: {error}", at=address, hint=HINT) from error


def _submitted(path: Path) -> Any:
    """A cluster whose workers are jobs of a batch system."""
    import dask_jobqueue
    import dask_jobqueue.local

    if not path.is_file():
        raise PqcError(f"no scheduler or cluster file '{path}'", hint=HINT)
    document = Document(path.read_text(encoding="utf-8-sig"), str(path))
    try:
        file = ClusterFile.model_validate(document.content)
    except ValidationError as error:
        first = error.errors()[0]
        key, place = document.find([str(part) for part in first["loc"]])
        raise ScheduleError(f"'{key}': {first['msg']}", at=place, hint=HINT) from error
    if file.system not in SYSTEMS:
        message = f"no batch system '{file.system}'{nearest(file.system, SYSTEMS)}; known: {', '.join(SYSTEMS)}"
        raise ScheduleError(message, at=document.find(["system"])[1], hint=HINT)
    module = dask_jobqueue.local if file.system == "local" else dask_jobqueue
    try:
        cluster = getattr(module, SYSTEMS[file.system])(**file.options)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"'options': {error}", at=document.find(["options"])[1], hint=HINT) from error
    cluster.scale(jobs=file.workers)
    return cluster


class Inputs(WorkerPlugin):  # type: ignore[misc]
    """Gives each worker, once, a copy of the model and the data on its own disk, and what does the tasks.

    Args:
        trainer: with the paths that all machines share.
    """

    name = PLUGIN

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def setup(self, worker: Any) -> None:
        """Copy the files; called when a worker comes."""
        folder = Path(worker.local_directory) / PLUGIN
        folder.mkdir(parents=True, exist_ok=True)
        source, data = self.trainer.source, self.trainer.data or self.trainer.source.data
        path = shutil.copy(source.path, folder / source.path.name)
        copied = None if data is None else folder / f"data{data.suffix}"
        if data is not None and copied is not None:
            shutil.copytree(data, copied, dirs_exist_ok=True) if data.is_dir() else shutil.copy(data, copied)
        self.trainer = replace(self.trainer, source=replace(source, path=Path(path)), data=copied)


def do(task: Task) -> Outcome:
    """Do a task on a worker."""
    plugin: Inputs = distributed.get_worker().plugins[PLUGIN]
    return plugin.trainer(task)


@dataclass(frozen=True)
class OnWorkers:
    """Does as many tasks at a time as there are threads of workers."""

    client: Client
    trainer: Trainer
    run: Run = do

    def outcomes(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Keep all workers busy; give tasks back as they end.

        Raises:
            PqcError: what would stop every other trial, too.
        """
        self.client.register_plugin(Inputs(self.trainer))
        running: dict[Any, Task] = {}
        try:
            while True:
                for task in _next(tasks, self._free(running)):
                    key = f"{task.folder.name}-{uuid4().hex}"
                    running[self.client.submit(self.run, task, key=key)] = task
                if not running:
                    return
                for future in self._done(running):
                    yield running.pop(future), _outcome(future)
        finally:
            self.client.cancel(list(running))

    def _free(self, running: dict[Any, Task]) -> int:
        """How many more tasks there is room for; one where no worker has come yet."""
        threads = sum(int(count) for count in self.client.nthreads().values())
        return max(threads, 1) - len(running)

    def _done(self, running: dict[Any, Task]) -> list[Any]:
        try:
            return list(distributed.wait(list(running), timeout=PATIENCE, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []


def _next(tasks: Iterator[Task], count: int) -> Iterator[Task]:
    for _ in range(count):
        task = next(tasks, None)
        if task is None:
            return
        yield task


def _outcome(future: Any) -> Outcome:
    """What a task found; that of one which workers died of is a failure."""
    try:
        found: Outcome = future.result()
        return found
    except distributed.scheduler.KilledWorker as error:
        return Outcome("failed", error=f"{DEATHS + 1} workers died of it: {error.last_worker}")
