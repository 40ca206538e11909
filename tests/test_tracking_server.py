"""Runs in an MLflow server: a process of its own, in an environment of its own, with credentials or without."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tracked_runs import EPOCHS, Small, assert_epochs, assert_model, assert_summary, make

from pqc.tracking.mlflow_tracker import load_mlflow
from pqc.workflows import tracking

ROOT = Path(__file__).parents[1]
SERVER = Path(os.environ.get("MLFLOW_SERVER", ROOT / ".venv-mlflow" / "bin" / "mlflow"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER.exists(), reason="MLflow's server is not installed: run make check-tracking"),
]


class Server:
    """A server on a free port, with its store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/s.db",
            "--artifacts-destination",
            self.folder / "files",
        ]
        place = ["--host", "127.0.0.1", "--port", self.port, "--workers", 1]
        command = [SERVER, "server", *place, *store]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.5)

    def stop(self) -> None:
        """End it with its workers, as a machine that goes down does."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def mlflow(server: Server) -> Iterator[Any]:
    """MLflow itself, to read the server with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_mlflow()
        before = found.get_tracking_uri()
        found.set_tracking_uri(server.uri)
        yield found
        found.set_tracking_uri(before)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return make(tmp_path)


class Outage:
    """A listener in whose time the server goes down."""

    def __init__(self, server: Server, after: int) -> None:
        self.server, self.after = server, after

    def stage(self, name: str) -> None:
        pass

    def epoch(self, line: dict[str, Any], done: int, total: int) -> None:
        if done == self.after:
            self.server.stop()


def test_a_server_holds_exactly_what_the_run_wrote(server: Server, small: Small, tmp_path: Path, mlflow: Any) -> None:
    summary = small.run(uri=server.uri, experiment="jets", registered_model="tagger")
    client = mlflow.MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("jets").experiment_id])
    assert [one.info.status for one in runs] == ["FINISHED"]
    run = runs[0].info.run_id
    assert len(small.history()) == EPOCHS
    assert_epochs(client, run, small.history())
    assert_summary(client, run, summary)
    copy = Path(client.download_artifacts(run, "clean.onnx", str(tmp_path)))
    assert copy.read_bytes() == (small.out / "clean.onnx").read_bytes()
    assert_model(mlflow, "models:/tagger/1", small)


def test_a_server_that_goes_down_costs_no_training_and_gets_the_rest_later(
    server: Server, small: Small, mlflow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "pqc.notes"):
        summary = small.run(Outage(server, 2), uri=server.uri, experiment="outage")
    server.start()
    assert summary["epochs"] == EPOCHS
    notes = [one.getMessage() for one in caplog.records if one.name == "pqc.notes"]
    assert [one.startswith("tracking failed: MLflow: API request") for one in notes] == [True, True]
    client = mlflow.MlflowClient(server.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
    assert run.info.status == "RUNNING"
    assert [one.step for one in client.get_metric_history(run.info.run_id, "loss")] == [1]
    assert tracking.track(small.out)["run"] == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert_epochs(client, run.info.run_id, small.history())
    assert_summary(client, run.info.run_id, summary)


def test_credentials_come_from_the_environment(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    heard: list[str] = []
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()

        def answer() -> None:
            with one.accept()[0] as connection:
                heard.append(connection.recv(65536).decode())
                connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        listener = Thread(target=answer)
        listener.start()
        small.run(uri=f"http://127.0.0.1:{one.getsockname()[1]}")
        listener.join(timeout=10)
    assert "Authorization: Basic bWU6aHVudGVyMg==" in heard[0]
