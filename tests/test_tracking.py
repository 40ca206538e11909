"""Runs in MLflow: a local store holds exactly what the run wrote, a failing tracker costs no training, no secret leaks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import EPOCHS, Small, assert_epochs, assert_model, assert_summary, make

from pqc import schedule
from pqc.errors import Interrupted, PqcError, TrackingError
from pqc.tracking import record
from pqc.tracking.follower import Follower, History, Status
from pqc.tracking.mlflow_tracker import MlflowTracker, load_mlflow
from pqc.tracking.settings import Mlflow, address
from pqc.training import state as checkpoints
from pqc.workflows import tracking

SECRET = "hunter2"
WITH_SECRET = f"http://me:{SECRET}@localhost:5000"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return make(tmp_path)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A run that no tracker heard of."""
    one = make(tmp_path_factory.mktemp("finished"))
    one.run()
    return one


@pytest.fixture
def finished(finished_once: Small, small: Small) -> Small:
    """A copy of that run."""
    shutil.copytree(finished_once.out, small.out)
    return small


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store in which nothing is: making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("store")
    MlflowTracker(Mlflow(uri=str(folder)))
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The folder of an empty store."""
    folder = tmp_path / "all runs"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder


@pytest.fixture
def mlflow() -> Iterator[Any]:
    """MLflow itself, to read stores with; its own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield load_mlflow()


def client_of(mlflow: Any, uri: str) -> Any:
    return mlflow.MlflowClient(uri, registry_uri=uri)


def sent(small: Small) -> dict[str, Any]:
    """What the folder remembers of its tracker."""
    found: dict[str, Any] = json.loads((small.out / "tracking.json").read_text())
    return found


def only_run(client: Any, experiment: str = "pqc") -> Any:
    """The one run of an experiment."""
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 1
    return runs[0]


def test_a_local_store_holds_exactly_what_the_run_wrote(small: Small, store: Path, tmp_path: Path, mlflow: Any) -> None:
    summary = small.run(uri=str(store), experiment="jets", registered_model="Tagger 1")
    assert json.loads((small.out / "summary.json").read_text()) == summary
    client = client_of(mlflow, f"sqlite:///{store}/mlflow.db")
    run = only_run(client, "jets")
    assert (run.info.run_id, run.info.status, run.info.run_name) == (sent(small)["run"], "FINISHED", "a run")
    history = small.history()
    assert len(history) == EPOCHS
    assert_epochs(client, run.info.run_id, history)
    assert_summary(client, run.info.run_id, summary)
    files = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert files == {"schedule.yaml", "history.json", "summary.json", "report.html", "clean.onnx", "trained.onnx"}
    for name in files:
        copy = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        assert copy.read_bytes() == (small.out / name).read_bytes()
    version = client.get_model_version("Tagger 1", sent(small)["versions"]["Tagger 1"])
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    assert [one.model_id for one in client.get_run(run.info.run_id).outputs.model_outputs] == [sent(small)["model"]]
    assert_model(mlflow, version.source, small)


def test_parameters_are_the_resolved_schedule(finished: Small, store: Path, mlflow: Any) -> None:
    found = tracking.track(finished.out, uri=str(store))
    params = only_run(client_of(mlflow, found["uri"])).data.params
    some = {
        "pruning.method": "cs",
        "pruning.options.final_temp": "50",
        "pruning.pruning_first": "true",
        "quantization.weights": "[1, 0, 7]",
        "training.batch": "32",
        "training.learning_rate": "cosine(1e-2, 1e-3)",
        "training.clip": "null",
        "phases.training.epochs": "3",
        "controls": "{}",
    }
    assert {key: params[key] for key in some} == some
    assert not [key for key in params if key.startswith("tracking")]
    assert params == record.parameters(finished.plan())


def test_keys_that_are_no_names_stay_in_their_mapping() -> None:
    plan = schedule.load("cs", {"pruning.layers": '{"fc*": {threshold_init: 0.1}}'})
    assert record.parameters(plan)["pruning.layers"] == '{"fc*": {"threshold_init": 0.1}}'


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_resumed_run_goes_on_as_the_same_run(
    checkpoint: bool, small: Small, store: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoints.save

    def save_and_stop(state: checkpoints.TrainingState, path: Path) -> None:
        stop = len(state.history) == 3
        if checkpoint or not stop:
            save(state, path)
        if stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_stop)
        with pytest.raises(Interrupted):
            small.run(uri=str(store))
    first = sent(small)
    client = client_of(mlflow, first["uri"])
    assert only_run(client).info.status == "KILLED"
    assert sorted(one.step for one in client.get_metric_history(first["run"], "loss")) == [1, 2, 3]
    summary = small.run(uri=str(store), resume=True)
    run = only_run(client)
    assert (run.info.run_id, run.info.status, sent(small)["run"]) == (first["run"], "FINISHED", first["run"])
    # An epoch that was sent and then trained again has the seconds of the first time.
    assert_epochs(client, first["run"], small.history(), but=() if checkpoint else ("seconds",))
    assert_summary(client, first["run"], summary)


def test_a_new_run_in_the_same_folder_is_a_new_run(small: Small, store: Path, mlflow: Any) -> None:
    small.run(uri=str(store))
    first = sent(small)["run"]
    small.run(uri=str(store))
    client = client_of(mlflow, sent(small)["uri"])
    assert sent(small)["run"] != first
    for run in (first, sent(small)["run"]):
        assert sorted(one.step for one in client.get_metric_history(run, "loss")) == list(range(1, EPOCHS + 1))


def test_a_run_that_fails_is_marked(small: Small, store: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise PqcError("diverged")

    monkeypatch.setattr("pqc.workflows.running.finalize", diverge)
    with pytest.raises(PqcError, match="diverged"):
        small.run(uri=str(store))
    client = client_of(mlflow, sent(small)["uri"])
    assert only_run(client).info.status == "FAILED"
    assert_epochs(client, sent(small)["run"], small.history())


def test_a_run_that_was_opened_by_half_is_sent_whole(
    finished: Small, store: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker(Mlflow(uri=str(store)))
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tracker.open(finished.out)
    tracker.close(finished.out, "FINISHED", finished.history())
    client = client_of(mlflow, tracker.uri)
    assert only_run(client).data.params == record.parameters(finished.plan())
    assert_epochs(client, sent(finished)["run"], finished.history())


class Away:
    """A tracker that stops working at an epoch."""

    def __init__(self, works_until: int) -> None:
        self.works_until = works_until
        self.calls: list[str] = []

    def open(self, folder: Path) -> None:
        self.calls.append("open")

    def epoch(self, line: dict[str, Any]) -> None:
        self.calls.append(f"epoch {line['epoch']}")
        if line["epoch"] > self.works_until:
            raise ZeroDivisionError("the server is away")

    def close(self, folder: Path, status: Status, history: History) -> None:
        self.calls.append(f"close {status} {len(history)}")


def test_a_tracker_that_fails_costs_no_training(
    small: Small, finished_once: Small, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Away(2)
    follower = Follower(tracker, small.out)
    with caplog.at_level(logging.WARNING, "pqc.notes"):
        summary = small.run(follower)
        follower.close("FINISHED")
    assert summary["epochs"] == EPOCHS
    assert (small.out / "clean.onnx").read_bytes() == (finished_once.out / "clean.onnx").read_bytes()
    assert tracker.calls == ["open", "epoch 1", "epoch 2", "epoch 3", "close FINISHED 5"]
    assert [one.getMessage() for one in caplog.records] == [
        "tracking failed: ZeroDivisionError: the server is away; the run is not affected; "
        f"`pqc track '{small.out}'` sends it later"
    ]


def test_a_server_that_is_away_is_noted_and_the_run_sent_later(
    small: Small, store: Path, mlflow: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, "pqc.notes"):
        summary = small.run(uri="http://127.0.0.1:9")
    notes = [one for one in caplog.records if one.name == "pqc.notes"]
    assert len(notes) == 2, "when the run starts, and when it ends"
    assert not (small.out / "tracking.json").exists()
    found = tracking.track(small.out, uri=str(store))
    client = client_of(mlflow, found["uri"])
    assert only_run(client).info.status == "FINISHED"
    assert_epochs(client, found["run"], small.history())
    assert_summary(client, found["run"], summary)


def test_sending_again_adds_nothing_but_a_name(finished: Small, store: Path, mlflow: Any) -> None:
    first = tracking.track(finished.out, uri=str(store), experiment="first")
    again = tracking.track(finished.out, registered_model="jets")
    assert again == {**first, "versions": {"jets": "1"}}
    assert tracking.track(finished.out, registered_model="jets") == again
    client = client_of(mlflow, first["uri"])
    assert only_run(client, "first").info.run_id == first["run"]
    assert_epochs(client, first["run"], finished.history())
    assert_summary(client, first["run"], record.summary(finished.out))
    assert [len(client.get_metric_history(first["run"], name)) for name in ("summary/ebops", "summary/seconds")] == [
        1,
        1,
    ]
    assert len(client.search_logged_models([only_run(client, "first").info.experiment_id])) == 1


def test_an_interrupted_run_is_sent_from_its_checkpoint(
    small: Small, store: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoints.save

    def save_and_stop(state: checkpoints.TrainingState, path: Path) -> None:
        save(state, path)
        if len(state.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(Interrupted):
        small.run()
    found = tracking.track(small.out, uri=str(store))
    client = client_of(mlflow, found["uri"])
    assert (only_run(client).info.status, found["model"]) == ("KILLED", "")
    assert_epochs(client, found["run"], checkpoints.load(small.out / "checkpoint.npz").history)


# Addresses and secrets


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WITH_SECRET, "holds credentials"),
        (f"https://{SECRET}@host", "holds credentials"),
        (f"postgresql://me:{SECRET}@host/db", "holds credentials"),
        (f"http://me:{SECRET}@[", "not a URI"),
        ("http://", "has no host"),
        ("file:///tmp/mlruns", "give the folder itself"),
    ],
)
def test_an_address_that_cannot_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        address(text)
    assert SECRET not in str(caught.value)


def test_a_folder_is_a_database_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert address("some runs") == f"sqlite:///{tmp_path}/some runs/mlflow.db"
    assert address("http://host:5000/") == "http://host:5000"
    assert address("") is address(None) is None


def pqc(*arguments: object, before: str = "", env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
    """Call the program in a process of its own; `before` is Python code that runs first."""
    code = f"{before}\nimport sys\nfrom pqc import cli\ncli.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": False, "cwd": cwd}
    return subprocess.run(command, env={**os.environ, **(env or {})}, **options)


@pytest.mark.parametrize("way", ["option", "setting", "schedule", "environment", "track"])
def test_credentials_in_an_address_are_refused_and_never_shown(way: str, small: Small, finished_once: Small) -> None:
    arguments, env = small.arguments("run"), {}
    if way == "option":
        arguments += ["--track", WITH_SECRET]
    if way == "setting":
        arguments += ["--set", f"tracking.mlflow.uri={WITH_SECRET}"]
    if way == "schedule":
        small.schedule.write_text(small.schedule.read_text() + f"tracking: {{mlflow: {{uri: '{WITH_SECRET}'}}}}\n")
    if way == "environment":
        arguments, env = [*arguments, "--track"], {"MLFLOW_TRACKING_URI": WITH_SECRET}
    if way == "track":
        arguments = ["track", str(finished_once.out), "--uri", WITH_SECRET]
    done = pqc("-vv", *arguments, env=env)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert SECRET not in done.stderr
    for path in small.out.rglob("*"):
        assert SECRET.encode() not in path.read_bytes()


def test_the_command_line_tracks_where_mlflow_would(small: Small, store: Path, tmp_path: Path, mlflow: Any) -> None:
    store.rename(tmp_path / "here")
    done = pqc(*small.arguments("train", "--track"), cwd=tmp_path / "here", env={"MLFLOW_TRACKING_URI": ""})
    assert (done.returncode, done.stdout) == (0, f"{small.out / 'trained.onnx'}\n"), done.stderr
    assert f"note: tracked as MLflow run {sent(small)['run']} at " in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"mlflow.db", "mlruns"}
    client = client_of(mlflow, f"sqlite:///{tmp_path}/here/mlflow.db")
    assert_epochs(client, only_run(client).info.run_id, small.history())
    done = pqc("track", small.out, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == sent(small), done.stderr


def test_mlflow_is_not_imported_unless_a_run_is_tracked(small: Small) -> None:
    before = (
        "import atexit, sys\n"
        "atexit.register(lambda: print([one for one in sys.modules if one.split('.')[0] in "
        "('mlflow', 'sqlalchemy', 'pandas')], file=sys.stderr))"
    )
    done = pqc("-q", *small.arguments("run"), before=before)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_without_mlflow_the_hint_is_what_to_install(small: Small) -> None:
    done = pqc(*small.arguments("run", "--track"), before="import sys\nsys.modules['mlflow'] = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pqc: environment error: tracking needs MLflow")
    assert done.stderr.endswith("hint: run: pip install 'pqc[tracking]'; or run without --track\n")
    assert not small.out.exists()


# Folders and files that cannot be


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tracking.json", "{", "the file is damaged"),
        ("tracking.json", "[1]", "the file is damaged"),
        ("tracking.json", '{"uri": "sqlite:///x", "run": "1", "model": "", "versions": 3}', "the file is damaged"),
        ("history.json", '{"a": 1}', "the history is no list of epochs"),
        ("history.json", '[{"epoch": "first"}]', "the history is no list of epochs"),
        ("history.json", "[" * 100_000, "cannot read the file"),
        ("history.json", "\xff\xfe", "cannot read the file"),
        ("summary.json", "[]", "the summary is no mapping"),
        ("summary.json", "", "cannot read the file"),
        ("schedule.yaml", "nosuch: 3", "unknown key 'nosuch'"),
        ("clean.onnx", "no model", "clean.onnx"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, words: str, finished: Small, store: Path) -> None:
    (finished.out / name).write_text(content, encoding="latin-1")
    with pytest.raises(PqcError, match=words) as caught:
        tracking.track(finished.out, uri=str(store))
    assert name in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nosuch", Path(__file__)):
        with pytest.raises(PqcError, match="there is no run in the folder"):
            tracking.track(folder)


def test_a_store_that_cannot_be_is_refused_before_training(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "mlflow.db").write_bytes(b"SQLite format 3\0 cut off")
    for uri in (str(tmp_path / "file"), str(tmp_path / "cut"), "nosuch://host"):
        with pytest.raises(TrackingError):
            small.run(uri=uri)
    assert not small.out.exists()


def test_a_run_that_is_gone_from_its_store_says_what_to_do(finished: Small, store: Path) -> None:
    content = {**tracking.track(finished.out, uri=str(store)), "run": "0" * 32}
    (finished.out / "tracking.json").write_text(json.dumps(content))
    with pytest.raises(TrackingError, match="remove tracking.json"):
        tracking.track(finished.out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registered_model": "a/b"}, "has no '/'"),
        ({"registered_model": " "}, "at least 1 character"),
        ({"experiment": ""}, "at least 1 character"),
        ({"experiment": "x" * 300}, "at most 250 characters"),
    ],
)
def test_a_name_that_cannot_be_is_refused(changes: dict[str, str], words: str, finished_once: Small) -> None:
    with pytest.raises(PqcError, match=words):
        tracking.track(finished_once.out, **changes)


def test_where_a_run_is_tracked_is_no_part_of_what_it_computes() -> None:
    plain, elsewhere = schedule.load("cs"), schedule.load("cs", {"tracking.mlflow.uri": "http://host"})
    assert plain.tracking.mlflow is None
    assert elsewhere.tracking.mlflow is not None
    assert plain.fingerprint() == elsewhere.fingerprint()
