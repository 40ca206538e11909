"""What goes to a worker, and what comes back; the same in one process and on many machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pqc import files
from pqc.errors import PqcError

RESULT = "result.json"
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Task:
    """One training to do.

    Args:
        number: of the trial in its study.
        folder: where its files go.
        schedule: the resolved schedule as YAML.
        in_study: whether it is a trial of the study, which may be pruned; otherwise it trains a trial's schedule again.
    """

    number: int
    folder: Path
    schedule: str
    in_study: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Args:
        state: `complete`, `pruned` at an intermediate value, or `failed`.
        metrics: by name, where it is complete.
        seconds: that it took.
        error: why it failed.
    """

    state: Literal["complete", "pruned", "failed"]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def save(self, folder: Path) -> None:
        """Keep it beside the files of its trial: what is there is not done again."""
        files.write_text(folder / RESULT, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Outcome | None:
        """The outcome in a folder, or None where the task is not done.

        Raises:
            PqcError: the file is damaged.
        """
        path = folder / RESULT
        try:
            content: dict[str, Any] = files.read_json(path, MAX_BYTES)
            return cls(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise PqcError(
                f"the file is damaged: {error}", at=str(path), hint="remove it; the trial runs again"
            ) from error


def said(error: PqcError) -> str:
    """An error on one line, without its hint."""
    return f"{error.at}: {error.message}" if error.at else error.message


class Run(Protocol):
    """Does a task."""

    def __call__(self, task: Task) -> Outcome:
        """Do the task, or say what became of it if it is done already."""


class Executor(Protocol):
    """Does tasks, here or elsewhere."""

    def outcomes(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Take tasks when there is room for them, and give them back in the order in which they end."""


@dataclass(frozen=True)
class InThisProcess:
    """Does one task after the other."""

    run: Run

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Take a task, do it, give it back."""
        for task in tasks:
            yield task, self.run(task)
