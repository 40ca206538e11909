"""What a user may name: models, schedules, passes, methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from pqc import files, graph, schedule
from pqc.errors import GraphError, UsageError
from pqc.methods import TABLE as METHODS
from pqc.models import TABLE as MODELS
from pqc.options import nearest
from pqc.passes import TABLE as PASSES


@dataclass(frozen=True)
class Source:
    """A model as the user named it.

    Args:
        name: for reports.
        path: the ONNX file.
        data: the data it brings, or None.
        schedule: the schedule that suits it, or None.
        classes: names of its classes, if known.
    """

    name: str
    path: Path
    data: Path | None = None
    schedule: str | None = None
    classes: tuple[str, ...] = ()

    def load(self) -> ir.Model:
        """Read the model."""
        return graph.load(self.path)


def resolve(model: str | Path) -> Source:
    """A file, or a reference model by name.

    Raises:
        GraphError: neither.
    """
    path = Path(model)
    if str(model) in MODELS and not path.is_file():
        found = MODELS[str(model)]
        return Source(found.name, found.path(), found.data_path(), found.schedule, found.classes)
    reason = files.no_file(path) if str(model) else None
    if reason is not None:
        raise GraphError(
            f"no model file: {reason}", at=str(path), hint="give an ONNX file, or a name of `pqc list models`"
        )
    if not path.is_file():
        raise GraphError(
            f"no model file or reference model '{model}'{nearest(str(model), MODELS)}", hint="see `pqc list models`"
        )
    return Source(path.stem, path)


def catalogue(kind: str) -> dict[str, str]:
    """Names and one-line descriptions of `passes`, `methods`, `schedules` or `models`."""
    if kind == "passes":
        return {name: one.summary() for name, one in PASSES.items()}
    if kind == "methods":
        return {name: (one.__doc__ or "").strip().splitlines()[0] for name, one in METHODS.items()}
    if kind == "schedules":
        return schedule.names()
    if kind == "models":
        return {name: model.description for name, model in MODELS.items()}
    raise UsageError(f"cannot list '{kind}'", hint="list passes, methods, schedules or models")
