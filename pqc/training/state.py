"""What training carries from epoch to epoch, and its checkpoint file."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pqc import files
from pqc.errors import TrainingError

Arrays = dict[str, np.ndarray]
SECTIONS = ("snapshot", "masks", "best")


@dataclass(frozen=True)
class Position:
    """Where training stands: in segment `segment`, with `epochs` of it done; `step` optimizer steps in all."""

    segment: int = 0
    epochs: int = 0
    step: int = 0


@dataclass(frozen=True)
class Steering:
    """A controller that steers a penalty's weight toward a target.

    The weight is multiplied by sinh of a proportional and an integral part of what is missing, so that it reaches over
    two decades and takes either sign: a negative penalty brings weights back.

    Args:
        missing: the share that was missing when it was measured last.
        total: the integral over epochs of what was missing.
    """

    missing: float = 0.05
    total: float = 0.05

    def after(self, missing: float, epochs: float) -> Steering:
        """The controller once `missing` is measured, so many epochs after the time before."""
        return Steering(missing, min(max(self.total + epochs * missing, -LIMIT), LIMIT))

    def factor(self) -> float:
        """What the penalty's weight is multiplied by."""
        return math.sinh(min(max(INTEGRAL * self.total + PROPORTIONAL * self.missing, -REACH), REACH))


PROPORTIONAL, INTEGRAL, REACH = 60.0, 12.0, 5.0
"""A penalty beyond sinh(REACH) would only swell the optimizer's second moment, which forgets slowly."""
LIMIT = REACH / INTEGRAL


@dataclass
class TrainingState:
    """Everything that a resumed run needs to end bit for bit as an uninterrupted one.

    Args:
        values: the parameters by name.
        moments: the optimizer's moments, by slot and parameter.
        snapshot: parameters to rewind to, empty where none was taken.
        masks: the frozen masks by the weights' names, empty until masks are frozen.
        best: the parameters of the segment's best epoch so far, empty where none is looked for or was found.
        steering: the controllers of targets, by the controls that they steer.
        position: where training stands.
        history: one record per epoch.
        fingerprint: of the schedule, the model and the data.
    """

    values: Arrays
    moments: dict[str, Arrays]
    snapshot: Arrays = field(default_factory=dict)
    masks: Arrays = field(default_factory=dict)
    best: Arrays = field(default_factory=dict)
    steering: dict[str, Steering] = field(default_factory=dict)
    position: Position = Position()
    history: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str = ""

    def belongs_to(self, fingerprint: str, path: Path) -> None:
        """Refuse to go on with a run of something else.

        Raises:
            TrainingError: the fingerprints differ.
        """
        if self.fingerprint != fingerprint:
            raise TrainingError(
                "the checkpoint belongs to another schedule, model or data",
                at=str(path),
                hint="run without --resume, or with what the run was started with",
            )

    def advance(self, **changes: int) -> None:
        """Move the position."""
        self.position = replace(self.position, **changes)


def save(state: TrainingState, path: Path) -> None:
    """Write a checkpoint in one step."""
    arrays = {f"value/{name}": array for name, array in state.values.items()}
    for section in SECTIONS:
        arrays |= {f"{section}/{name}": array for name, array in getattr(state, section).items()}
    for slot, moments in state.moments.items():
        arrays |= {f"moment/{slot}/{name}": array for name, array in moments.items()}
    header = {
        "position": vars(state.position),
        "history": state.history,
        "fingerprint": state.fingerprint,
        "steering": {name: vars(one) for name, one in state.steering.items()},
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays["digest"] = _digest(arrays)
    files.write_arrays(path, arrays)


def load(path: Path) -> TrainingState:
    """Read a checkpoint.

    Raises:
        TrainingError: the file is missing, damaged or no checkpoint.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("a folder, or a pipe that might be read for ever")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not np.array_equal(arrays.pop("digest"), _digest(arrays)):
            raise ValueError("edited")
        header = json.loads(arrays.pop("header").tobytes())
        position = Position(**{name: int(number) for name, number in header["position"].items()})
        history, fingerprint = [dict(record) for record in header["history"]], str(header["fingerprint"])
        steering = {
            str(name): Steering(**{key: float(number) for key, number in one.items()})
            for name, one in header["steering"].items()
        }
    except FileNotFoundError as error:
        raise TrainingError("there is no checkpoint to resume", at=str(path), hint="run without --resume") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise TrainingError("the checkpoint is damaged", at=str(path), hint="run without --resume") from error
    moments: dict[str, Arrays] = {}
    for name, array in arrays.items():
        if name.startswith("moment/"):
            _, slot, parameter = name.split("/", 2)
            moments.setdefault(slot, {})[parameter] = array
    return TrainingState(
        values=_section(arrays, "value/"),
        moments=moments,
        **{section: _section(arrays, f"{section}/") for section in SECTIONS},
        steering=steering,
        position=position,
        history=history,
        fingerprint=fingerprint,
    )


def _digest(arrays: Arrays) -> np.ndarray:
    """A hash of all arrays: what is edited by hand fits together no more, and might train for ever or to nothing."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode() + arrays[name].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _section(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
