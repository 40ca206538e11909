"""What the folder of a run says of it, in the plain terms of a tracker: parameters, metrics, files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pqc import files, graph, library, schedule
from pqc.errors import DataError, GraphError
from pqc.schedule import Schedule
from pqc.training import state as checkpoints
from pqc.training.trainer import CHECKPOINT

PLAN, HISTORY, SUMMARY, CLEAN = "schedule.yaml", "history.json", "summary.json", "clean.onnx"
FILES = (PLAN, HISTORY, SUMMARY, "front.json", "report.html", CLEAN, "trained.onnx")
MAX_BYTES = 200_000_000
"""More than any history: a longer file is no text of ours."""
KEY = re.compile(r"[\w\-. ]{1,100}", re.ASCII)
"""What every tracker takes as a part of a name."""
Signature = list[tuple[str, str, list[int]]]


def plan(folder: Path) -> Schedule:
    """The resolved schedule of a run.

    Raises:
        DataError: the folder is not that of a run.
    """
    if not (folder / PLAN).is_file():
        raise DataError(f"there is no run in the folder: {PLAN} is missing", at=str(folder), hint="see `pqc run --out`")
    return schedule.load(folder / PLAN)


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of the epochs: those of a finished run, or as far as its checkpoint goes."""
    if not (folder / HISTORY).is_file():
        return checkpoints.load(folder / CHECKPOINT).history if (folder / CHECKPOINT).is_file() else []
    found = _json(folder / HISTORY)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("epoch"), int) for one in found
    ):
        raise DataError("the history is no list of epochs", at=str(folder / HISTORY), hint="run `pqc run --resume`")
    return found


def summary(folder: Path) -> dict[str, Any]:
    """What a finished run found; empty where it has not come so far."""
    if not (folder / SUMMARY).is_file():
        return {}
    found = _json(folder / SUMMARY)
    if not isinstance(found, dict):
        raise DataError("the summary is no mapping", at=str(folder / SUMMARY), hint="run `pqc run --resume`")
    return found


def artifacts(folder: Path) -> list[Path]:
    """The files of a run that are worth keeping."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def parameters(plan: Schedule) -> dict[str, str]:
    """A schedule, one dotted key a value: text as it is, anything else as JSON.

    Mappings whose keys are no names, such as shell patterns, stay whole.
    """
    content = plan.model_dump(mode="json", exclude={"tracking"})
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in _leaves(content, ".")}


def epoch_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by name."""
    return {name: float(value) for name, value in record.items() if name != "epoch" and _is_number(value)}


def summary_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary by their places in it, as `summary/clean/accuracy`; yes and no are 1 and 0."""
    numbers = {key: value for key, value in _leaves(found, "/") if _is_number(value) or isinstance(value, bool)}
    return {f"summary/{key}": float(value) for key, value in numbers.items()}


def tags(found: Mapping[str, Any]) -> dict[str, str]:
    """What a summary says in words, by name."""
    words = {key: value for key, value in _leaves(found, ".") if isinstance(value, str)}
    return {f"pqc.{key}": value for key, value in words.items()}


def portable(folder: Path) -> ir.Model | None:
    """The clean model with the bodies of its operators, so that any ONNX Runtime runs it; None where there is none.

    Raises:
        GraphError: the file is damaged.
    """
    if not (folder / CLEAN).is_file():
        return None
    model = graph.load(folder / CLEAN)
    library.unlink(model)
    library.link(model)
    return model


def signature(values: list[ir.Value]) -> Signature:
    """Name, NumPy type and shape of each; -1 stands for any length.

    Raises:
        GraphError: a type or a shape is not known.
    """
    found = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise GraphError(f"'{value.name}' has no type or no shape", at=CLEAN)
        dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        found.append((str(value.name), str(value.dtype.numpy()), dims))
    return found


def _leaves(content: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value and all(KEY.fullmatch(str(inner)) for inner in value):
            yield from ((f"{key}{separator}{inner}", leaf) for inner, leaf in _leaves(value, separator))
        else:
            yield key, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: Path) -> Any:
    try:
        return files.read_json(path, MAX_BYTES)
    except ValueError as error:
        raise DataError(f"cannot read the file: {error}", at=str(path), hint="run `pqc run --resume`") from error
