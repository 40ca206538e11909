"""Runs in a tracker: as they go, or afterwards from their folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pqc.errors import Interrupted, UsageError
from pqc.schedule import Schedule
from pqc.tracking import record, sent
from pqc.tracking.settings import Mlflow
from pqc.workflows.job import Listener


@contextmanager
def tracked(settings: Mlflow | None, folder: Path, listener: Listener | None) -> Iterator[Listener | None]:
    """Give the listener of a run that is sent to the tracker; the one that was given where none is set.

    Raises:
        EnvironmentFault: MLflow is not installed.
        TrackingError: there can be no such store; later failures are only noted.
    """
    if settings is None:
        yield listener
        return
    from pqc.tracking.follower import Follower
    from pqc.tracking.mlflow_tracker import MlflowTracker

    follower = Follower(MlflowTracker(settings), folder, listener)
    try:
        yield follower
    except (KeyboardInterrupt, Interrupted):
        follower.close("KILLED")
        raise
    except BaseException:
        follower.close("FAILED")
        raise
    follower.close("FINISHED")


def track_settings(plan: Schedule, asked: str | None) -> Mlflow | None:
    """What `--track` asks for (None: what the schedule says; empty: its address, or MLflow's own), or None."""
    return plan.tracking.mlflow if asked is None else settings(plan, uri=asked or None)


def settings(plan: Schedule, **changes: str | None) -> Mlflow:
    """The schedule's settings of MLflow, or the defaults, with what is not None instead.

    Raises:
        UsageError: names the value that cannot be.
    """
    given = plan.tracking.mlflow or Mlflow()
    wanted = {key: value for key, value in changes.items() if value is not None}
    try:
        return Mlflow.model_validate({**given.model_dump(), **wanted})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(reason, at=f"tracking.mlflow.{first['loc'][0]}", hint="see docs/tracking.md") from None


def track(folder: Path, **changes: str | None) -> dict[str, Any]:
    """Send the run of a folder, or what is missing of it; see `settings` for the changes.

    Returns:
        where it went: `uri`, `run`, `model`, `versions`.

    Raises:
        DataError: the folder is not that of a run.
        TrackingError: MLflow does not take it.
    """
    from pqc.tracking.mlflow_tracker import MlflowTracker

    plan, earlier = record.plan(folder), sent.read(folder)
    if earlier is not None and changes.get("uri") is None:
        changes["uri"] = earlier.uri
    history = record.history(folder)
    tracker = MlflowTracker(settings(plan, **changes))
    tracker.close(folder, "FINISHED" if (folder / record.HISTORY).is_file() else "KILLED", history)
    assert tracker.sent is not None
    return vars(tracker.sent)
