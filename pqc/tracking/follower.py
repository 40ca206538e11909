"""A listener that passes what it hears to a tracker, and never lets the tracker stop a run."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from pqc.errors import PqcError
from pqc.tracking import record
from pqc.workflows.job import Listener

NOTES = logging.getLogger("pqc.notes")
MOST_WORDS = 300
Status = Literal["FINISHED", "FAILED", "KILLED"]
History = list[dict[str, Any]]


class Tracker(Protocol):
    """Where runs are sent. Each call may raise; what was not sent is sent by the next `close`."""

    def open(self, folder: Path) -> None:
        """Start a run, or go on with the one that the folder was sent as."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Send one line of the history."""

    def close(self, folder: Path, status: Status, history: History) -> None:
        """Send all that is missing, and say how the run ended."""


class Follower:
    """Sends a run to a tracker as it goes.

    Args:
        tracker: where to; after it fails once, it is left alone until the run ends.
        folder: the run's.
        listener: who else is told.
    """

    def __init__(self, tracker: Tracker, folder: Path, listener: Listener | None = None) -> None:
        self._tracker, self._folder, self._listener = tracker, folder, listener
        self._opened = False
        self._works = True
        self._epochs: History = []

    def stage(self, name: str) -> None:
        """A part of the run begins; at the first one the schedule is in the folder."""
        if self._listener is not None:
            self._listener.stage(name)
        if not self._opened:
            self._opened = True
            self._try(lambda: self._tracker.open(self._folder))

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended."""
        if self._listener is not None:
            self._listener.epoch(record, done, total)
        self._epochs.append(record)
        if self._works:
            self._try(lambda: self._tracker.epoch(record))

    def expansion(self, words: str, done: int, share: float) -> None:
        """A search has expanded so many nodes."""
        if self._listener is not None:
            self._listener.expansion(words, done, share)

    def close(self, status: Status) -> None:
        """The run ended. Nothing is sent of one that ended before it began."""
        if self._opened:
            self._try(lambda: self._tracker.close(self._folder, status, self._history(status)))

    def _history(self, status: Status) -> History:
        """All epochs, or where the run broke off those that were heard of: older files may be another run's."""
        return record.history(self._folder) if status == "FINISHED" else self._epochs

    def _try(self, send: Callable[[], None]) -> None:
        self._works = False
        try:
            send()
            self._works = True
        except Exception as error:  # whatever a tracker raises, hours of training are worth more
            reason = error.message if isinstance(error, PqcError) else f"{type(error).__name__}: {error}"
            NOTES.warning(
                "tracking failed: %s; the run is not affected; `pqc track %s` sends it later",
                " ".join(reason.split())[:MOST_WORDS],
                shlex.quote(str(self._folder)),
            )
