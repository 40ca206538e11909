"""What can go wrong, as one tree.

PqcError              exit code 1
├── UsageError        exit code 2: the command line itself
├── ScheduleError     a schedule file: file, line, key
├── GraphError        a model that is broken, or a node in it
│   └── UnsupportedError  a valid model that pqc or its target cannot take
├── PipelineError     the text of a pipeline
├── PassError         a pass failed, or broke what it declared
├── DataError         arrays: shape, type, values
├── TrainingError     divergence
│   └── Interrupted   stopped by the user; a checkpoint was written
├── SearchError       a search for bits and masks found nothing that meets its goal
├── TrackingError     an experiment tracker: its address, its store
├── HardwareError     hls4ml, the compiler, the emulation
└── EnvironmentFault  a missing program or a wrong build of a package
"""

from __future__ import annotations


class PqcError(Exception):
    """An error with a place and a hint, printed as one paragraph.

    Args:
        message: what is wrong, naming the thing, what was expected and what was found.
        at: where: a file and line, a node, an epoch.
        hint: what to do about it.
    """

    exit_code = 1
    label = "error"
    advice = "run again with -vv to see where it comes from"
    """The hint where none is given."""

    def __init__(self, message: str, *, at: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.at = at
        self.hint = hint or self.advice

    def __str__(self) -> str:
        place = f"{self.at}: " if self.at else ""
        return f"{place}{self.message}\nhint: {self.hint}"


class UsageError(PqcError):
    """The command line cannot be understood."""

    exit_code = 2
    label = "usage error"
    advice = "see --help"


class ScheduleError(PqcError):
    """A schedule file has a wrong key, type or value."""

    label = "schedule error"
    advice = "docs/schedules.md shows a whole schedule"


class GraphError(PqcError):
    """A model file or graph is broken."""

    label = "model error"
    advice = "export the model again, with standard operators and float32 weights"


class UnsupportedError(GraphError):
    """A valid model holds something that pqc or its target cannot take."""

    label = "unsupported model"
    advice = "export the model without it"


class PipelineError(PqcError):
    """The text of a pipeline cannot be parsed."""

    label = "pipeline error"
    advice = "docs/passes.md has every pass and its options"


class PassError(PqcError):
    """A pass failed, or its result is not what it declares."""

    label = "pass error"
    advice = "docs/passes.md says what the pass needs"


class DataError(PqcError):
    """Data do not fit the model."""

    label = "data error"
    advice = "docs/data.md says what data look like"


class TrainingError(PqcError):
    """Training diverged."""

    label = "training error"
    advice = "lower training.learning_rate"


class Interrupted(TrainingError):
    """Training was stopped by the user; its checkpoint can be resumed."""

    label = "interrupted"
    advice = "the same command with --resume goes on from the checkpoint"


class SearchError(PqcError):
    """A search for bits and masks found nothing that meets its goal."""

    label = "search error"
    advice = "ask for less, or allow fewer bits and more pruning; docs/fitcompress.md says how"


class TrackingError(PqcError):
    """An experiment tracker cannot be used, or does not take a run."""

    label = "tracking error"
    advice = "docs/tracking.md says where runs can be sent"


class HardwareError(PqcError):
    """hls4ml, the C++ compiler or the emulation failed."""

    label = "hardware error"
    advice = "the log is in the project's folder"


class EnvironmentFault(PqcError):
    """A program is missing, or the wrong build of a package is in place."""

    label = "environment error"
    advice = "run `pqc doctor`"
