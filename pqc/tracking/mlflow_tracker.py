"""Sends runs to MLflow, by its client alone: no state of MLflow's own that other code in the process would see."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import EnvironmentFault, TrackingError
from pqc.tracking import record, sent
from pqc.tracking.follower import History, Status
from pqc.tracking.settings import SQLITE, Mlflow, address, database, refuse

NOTES = logging.getLogger("pqc.notes")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""MLflow's own settings, where the user has not set them: it asks nobody, leaves standard output to data, and gives up
on a server that is away after seconds, not minutes."""
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100
"""What one request may hold."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Lets MLflow's pages show training runs first, not traces of language models."""
PER_EPOCH = "loss"
"""A metric that each epoch has: where it was sent, the epoch was."""
Item = TypeVar("Item")


class MlflowTracker:
    """Sends runs to an MLflow server or to a local store.

    Args:
        settings: where to, and under which names.

    Raises:
        EnvironmentFault: MLflow is not installed.
        TrackingError: there can be no such store. A server is not asked yet.
    """

    def __init__(self, settings: Mlflow) -> None:
        self._settings = settings
        self._mlflow = load_mlflow()
        self._sql_error = importlib.import_module("sqlalchemy.exc").SQLAlchemyError
        try:
            self.uri = refuse(address(settings.uri) or self._mlflow.get_tracking_uri())
        except ValueError as error:
            raise TrackingError(str(error)) from None
        file = database(self.uri)
        if file is not None:
            _make_folder(file.parent)
            self.uri = f"{SQLITE}{file}"
        with self._speaking():
            self._client = self._mlflow.MlflowClient(self.uri, registry_uri=self.uri)
        self.sent: sent.Sent | None = None
        self._epochs: set[int] = set()

    def open(self, folder: Path) -> None:
        """Start a run, or go on with the one that the folder was sent as, and send the schedule."""
        with self._speaking():
            found = sent.read(folder)
            if found is None or found.uri != self.uri:
                run = self._client.create_run(self._experiment(), run_name=folder.resolve().name)
                found = sent.Sent(self.uri, run.info.run_id)
                found.save(folder)
            else:
                self._client.update_run(found.run, "RUNNING")
            known = self._client.get_run(found.run).data.params
            self._epochs = {metric.step for metric in self._client.get_metric_history(found.run, PER_EPOCH)}
            values = record.parameters(record.plan(folder))
            params = [self._mlflow.entities.Param(key, value) for key, value in values.items() if key not in known]
            for batch in _batches(params, MOST_PARAMS):
                self._client.log_batch(found.run, params=batch)
            self._client.log_artifact(found.run, str(folder / record.PLAN))
            self.sent = found

    def epoch(self, line: dict[str, Any]) -> None:
        """Send the numbers of one epoch, unless they were sent before."""
        self._send_epochs([line])

    def close(self, folder: Path, status: Status, history: History) -> None:
        """Send all that is missing: epochs, summary, files, the clean model; and say how the run ended."""
        if self.sent is None:
            self.open(folder)
        assert self.sent is not None
        self._send_epochs(history)
        with self._speaking():
            self._send_summary(record.summary(folder), len(history))
            for path in record.artifacts(folder):
                self._client.log_artifact(self.sent.run, str(path))
            model = record.portable(folder) if status == "FINISHED" else None
            if model is not None:
                self._send_model(model, folder, len(history))
            self._client.set_terminated(self.sent.run, status)
        NOTES.info("tracked as MLflow run %s at %s", self.sent.run, self.uri)

    def _experiment(self) -> str:
        name = self._settings.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        file = database(self.uri)
        files = None if file is None else str(file.parent / "mlruns")
        return str(self._client.create_experiment(name, artifact_location=files, tags=KIND))

    def _send_epochs(self, lines: History) -> None:
        assert self.sent is not None
        new = [line for line in lines if int(line["epoch"]) not in self._epochs]
        metrics = [self._metrics(record.epoch_metrics(line), int(line["epoch"])) for line in new]
        with self._speaking():
            # An epoch is never split over two requests: it is sent as a whole or not at all.
            most = max(map(len, metrics), default=1)
            for batch in _batches(metrics, max(MOST_METRICS // most, 1)):
                self._client.log_batch(self.sent.run, metrics=list(itertools.chain(*batch)))
        self._epochs |= {int(line["epoch"]) for line in new}

    def _send_summary(self, found: dict[str, Any], step: int) -> None:
        assert self.sent is not None
        known = self._client.get_run(self.sent.run).data.metrics
        new = {name: value for name, value in record.summary_metrics(found).items() if known.get(name) != value}
        for metrics in _batches(self._metrics(new, step), MOST_METRICS):
            self._client.log_batch(self.sent.run, metrics=metrics)
        tags = [self._mlflow.entities.RunTag(key, value) for key, value in record.tags(found).items()]
        for batch in _batches(tags, MOST_TAGS):
            self._client.log_batch(self.sent.run, tags=batch)

    def _metrics(self, values: dict[str, float], step: int) -> list[Any]:
        now = int(1000 * time.time())
        return [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]

    def _send_model(self, model: ir.Model, folder: Path, step: int) -> None:
        """Log the model once, and register it once under each name that is asked for."""
        assert self.sent is not None
        if not self.sent.model:
            self.sent.model = self._log_model(model, self.sent.run, step)
            self.sent.save(folder)
        name = self._settings.registered_model
        if name is None or name in self.sent.versions:
            return
        try:
            self._client.create_registered_model(name)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = self._client.get_logged_model(self.sent.model).artifact_location
        version = self._client.create_model_version(
            name, source, run_id=self.sent.run, model_id=self.sent.model, await_creation_for=0
        )
        self.sent.versions[name] = str(version.version)
        self.sent.save(folder)

    def _log_model(self, model: ir.Model, run: str, step: int) -> str:
        experiment = self._client.get_run(run).info.experiment_id
        logged = self._client.create_logged_model(experiment, name="model", source_run_id=run)
        description = self._mlflow.models.Model(
            run_id=run, model_id=logged.model_id, artifact_path=logged.artifact_location
        )
        with tempfile.TemporaryDirectory() as place:
            self._mlflow.onnx.save_model(
                graph.to_proto(model),
                f"{place}/model",
                mlflow_model=description,
                signature=self._mlflow.models.ModelSignature(
                    self._schema(list(model.graph.inputs)), self._schema(list(model.graph.outputs))
                ),
                pip_requirements=["onnx", "onnxruntime"],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
            self._client.log_model_artifacts(logged.model_id, f"{place}/model")
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(run, [self._mlflow.entities.LoggedModelOutput(logged.model_id, step)])
        return str(logged.model_id)

    def _schema(self, values: list[ir.Value]) -> Any:
        types = self._mlflow.types
        specs = [types.TensorSpec(np.dtype(kind), tuple(dims), name) for name, kind, dims in record.signature(values)]
        return types.Schema(specs)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Let what MLflow and what lies under it raise come out as one error, and its warnings not at all."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (self._mlflow.exceptions.MlflowException, self._sql_error, ImportError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrackingError(f"MLflow: {reason}", at=self.uri, hint=_hint(error)) from error


def _hint(error: Exception) -> str:
    missing = getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
    return sent.HINT if missing else "check the address and whether it answers; `pqc track` sends a run later"


def load_mlflow() -> Any:
    """MLflow, with the parts that are needed, and quiet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow = importlib.import_module("mlflow")
            for part in ("mlflow.onnx", "mlflow.entities", "mlflow.models", "mlflow.types"):
                importlib.import_module(part)
    except ImportError as error:
        raise EnvironmentFault(
            f"tracking needs MLflow: {error}", hint="run: pip install 'pqc[tracking]'; or run without --track"
        ) from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _make_folder(folder: Path) -> None:
    """Make the folder of a local store: SQLAlchemy would try for most of a minute to open a file in one that is not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"cannot make the folder of the store: {error.strerror}", at=str(folder), hint="give another --track"
        ) from error


def _batches(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, most)):
        yield batch
