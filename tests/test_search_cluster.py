"""Searches on workers: one is killed in the middle of a trial, and the study ends complete."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import searched_place

from pqc import workflows
from pqc.errors import PqcError, ScheduleError
from pqc.search import request
from pqc.search.trials import Outcome

distributed = pytest.importorskip("distributed")

SPACE = """\
schedule: base.yaml
parameters:
  training.learning_rate: {float: [1e-3, 1e-1], log: true}
sampler: random
trials: 5
"""
SCHEDULE = """\
pruning: {method: cs, options: {threshold_decay: 1.0e-3}}
training: {batch: 8}
phases:
  training: {epochs: 100}
"""


class Silent:
    """Notes the trials that ended."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def trial(self, point: Any, done: int, total: int, best: Any) -> None:
        self.numbers.append(point.number)

    def finalist(self, number: int, seed: int, outcome: Outcome) -> None:
        raise AssertionError("there are no finalists")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    searched_place.write(tmp_path, SCHEDULE, SPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(folder: Path, listener: Silent, **options: Any) -> dict[str, Any]:
    asked = request.read(Path("space.yaml"), "base.yaml", {})
    source = workflows.resolve("m.onnx")
    return workflows.search(source, asked, Path("d.npz"), folder, workflows.SearchOptions(**options), listener)


def weights(path: Path) -> dict[str, bytes]:
    """The stored arrays of a model file, byte for byte."""
    return {one.name: onnx.numpy_helper.to_array(one).tobytes() for one in onnx.load(path).graph.initializer}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """Two workers in processes of their own, under nannies that start new ones where they die."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options, local_directory=str(tmp_path / "scratch")) as found:
        yield found


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_survives_the_death_of_a_worker(place: Path, cluster: Any) -> None:
    listener = Silent()
    killed = threading.Thread(target=_kill_a_worker, args=(cluster, place / "study/trials/0001"))
    killed.start()
    found = search(Path("study"), listener, scheduler=cluster.scheduler_address)
    killed.join(timeout=60)
    assert (place / "killed").exists()
    assert sorted(listener.numbers) == list(range(5))
    assert [(one["number"], one["state"]) for one in found["trials"]] == [(number, "complete") for number in range(5)]
    # The trial that was cut off has the weights of a run that never was.
    folder, source = place / "study/trials/0001", workflows.resolve("m.onnx")
    plan = workflows.load_plan(folder / "schedule.yaml", source, {})
    workflows.run(source, plan, Path("d.npz"), Path("alone"), workflows.RunOptions(hls=False))
    assert weights(folder / "clean.onnx") == weights(Path("alone/clean.onnx"))
    # Inputs were copied once to each worker's disk: the two there were, and the one that came.
    assert len(list((place / "scratch").rglob("pqc-search/m.onnx"))) in (2, 3)
    summary = json.loads((folder / "summary.json").read_text())
    assert Path(summary["data"]).is_relative_to(place / "scratch")


def _kill_a_worker(cluster: Any, folder: Path) -> None:
    """Kill the worker that does a trial with SIGKILL, once the trial has a checkpoint."""
    with distributed.Client(cluster.scheduler_address) as client:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoint.npz").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        owners = [where for where, keys in client.processing().items() if any(key.startswith("0001-") for key in keys)]
        (process,) = client.run(os.getpid, workers=owners).values()
        assert not (folder / "result.json").exists()
        os.kill(process, signal.SIGKILL)
        (folder.parents[2] / "killed").touch()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("system: slrm", "cluster.yaml:1: no batch system 'slrm'; did you mean 'slurm'?"),
        ("system: slurm\nworker: 3", "cluster.yaml:2: 'worker': Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_in_a_cluster_file_is_said(text: str, words: str, place: Path) -> None:
    Path("cluster.yaml").write_text(text)
    with pytest.raises(ScheduleError) as caught:
        search(Path("study"), Silent(), scheduler="cluster.yaml")
    assert words in str(caught.value), caught.value


@pytest.mark.parametrize("scheduler", ["local:", "local:0", "nowhere.yaml"])
def test_a_scheduler_that_is_none_is_an_error(scheduler: str, place: Path) -> None:
    with pytest.raises(PqcError, match="no scheduler"):
        search(Path("study"), Silent(), scheduler=scheduler)
