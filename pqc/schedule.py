"""Schedules: what is compressed and when, as validated YAML."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from pqc import curves
from pqc.errors import PqcError, ScheduleError
from pqc.fixed_point import FixedPoint
from pqc.functions.losses import LOSSES
from pqc.functions.optimizers import OPTIMIZERS
from pqc.functions.quant import ROUNDING_MODES
from pqc.methods import TABLE as METHODS
from pqc.options import nearest

MAX_FILE_BYTES = 1_000_000


def _known(table: Iterable[str], what: str) -> BeforeValidator:
    names = list(table)

    def check(name: object) -> object:
        if name is not None and name not in names:
            raise ValueError(f"no {what} '{name}'{nearest(str(name), names)}; known: {', '.join(names)}")
        return name

    return BeforeValidator(check)


def _bits(value: object) -> object:
    if value is None or isinstance(value, FixedPoint):
        return value
    if not isinstance(value, list) or len(value) != 3 or not all(type(part) is int for part in value):
        raise ValueError("bits are three integers: [k, i, f]")
    return FixedPoint(*value)


def _curve(value: object) -> object:
    if not isinstance(value, str | int | float):
        raise ValueError("a curve is a number or text such as exp(1, 200)")
    try:
        curves.parse(value)
    except PqcError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return value


Bits = Annotated[
    FixedPoint | None,
    BeforeValidator(_bits),
    PlainSerializer(lambda kind: None if kind is None else [kind.k, kind.i, kind.f]),
]
Curve = Annotated[str | float, BeforeValidator(_curve)]


class Section(BaseModel):
    """A part of a schedule; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Pruning(Section):
    """Which weights are pruned, and how."""

    method: Annotated[str | None, _known(METHODS, "pruning method")] = None
    options: dict[str, float] = {}
    pruning_first: bool = True
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _options_exist(self) -> Pruning:
        known = [one.name for one in fields(METHODS[self.method])] if self.method else []
        for name in self.options:
            if name not in known:
                raise ValueError(
                    f"'{self.method}' has no option '{name}'{nearest(name, known)}; known: {', '.join(known)}"
                )
        return self


class Quantization(Section):
    """Fixed point types (k, i, f) of what is rounded; null leaves it in float."""

    weights: Bits = FixedPoint(1, 0, 7)
    biases: Bits = FixedPoint(1, 0, 7)
    inputs: Bits = FixedPoint(0, 0, 7)
    outputs: Bits = None
    rounding: Annotated[str, _known(ROUNDING_MODES, "rounding mode")] = "ROUND"
    calibrate: bool = True
    exclude: tuple[str, ...] = ()


class OptimizerSection(Section):
    """How weights move."""

    name: Annotated[str, _known(OPTIMIZERS, "optimizer")] = "adam"
    options: dict[str, float] = {}

    @model_validator(mode="after")
    def _options_exist(self) -> OptimizerSection:
        known = [one.name for one in fields(OPTIMIZERS[self.name])]
        for option in self.options:
            if option not in known:
                raise ValueError(
                    f"'{self.name}' has no option '{option}'{nearest(option, known)}; known: {', '.join(known)}"
                )
        return self


class Training(Section):
    """The loss, the optimizer, and the batches."""

    loss: Annotated[str, _known(LOSSES, "loss")] = "cross-entropy"
    loss_options: dict[str, float] = {}
    optimizer: OptimizerSection = OptimizerSection()
    learning_rate: Curve = 1e-3
    rates: dict[str, float] = {}
    batch: Annotated[int, Field(ge=1)] = 256
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0


class Phase(Section):
    """A stretch of epochs."""

    epochs: Annotated[int, Field(ge=0)] = 0
    learning_rate: Curve | None = None


class TrainingPhase(Phase):
    """The stretch in which masks are learned, once per round."""

    rounds: Annotated[int, Field(ge=1)] = 1
    rewind: Literal["never", "every-round", "post-training-stage"] = "never"
    save_weights_epoch: Annotated[int, Field(ge=-1)] = -1

    @model_validator(mode="after")
    def _rewind_has_source(self) -> TrainingPhase:
        if self.rewind != "never" and not 0 <= self.save_weights_epoch < max(self.epochs, 1):
            raise ValueError(
                f"rewind '{self.rewind}' needs save_weights_epoch between 0 and {max(self.epochs - 1, 0)}"
            )
        return self


class Phases(Section):
    """Pretraining without masks, training of the masks, fine-tuning with the masks frozen."""

    pretraining: Phase = Phase()
    training: TrainingPhase = TrainingPhase()
    fine_tuning: Phase = Phase()


class Schedule(Section):
    """All that a run does to a model."""

    name: str = ""
    description: str = ""
    pruning: Pruning = Pruning()
    quantization: Quantization | None = Quantization()
    training: Training = Training()
    phases: Phases = Phases()
    controls: dict[str, Curve] = {}

    @model_validator(mode="after")
    def _controls_exist(self) -> Schedule:
        known = METHODS[self.pruning.method]().controls() if self.pruning.method else {}
        for name in self.controls:
            if name not in known:
                raise ValueError(
                    f"no control '{name}'{nearest(name, known)}; the method has: {', '.join(known) or 'none'}"
                )
        return self

    def text(self) -> str:
        """The resolved schedule as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fingerprint(self) -> str:
        """A hash of everything but name and description."""
        return hashlib.sha256(
            yaml.safe_dump(self.model_dump(mode="json", exclude={"name", "description"})).encode()
        ).hexdigest()


def names() -> dict[str, str]:
    """The shipped schedules with their descriptions."""
    folder = resources.files("pqc.schedules")
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): load(name.removesuffix(".yaml")).description for name in files}


def load(source: str | Path, settings: dict[str, str] | None = None) -> Schedule:
    """Read a schedule file, or a shipped schedule by name.

    Args:
        source: a path or a name.
        settings: values by dotted key, as `--set` gives them; each value is YAML.

    Raises:
        ScheduleError: with file, line, key and the nearest valid key.
    """
    label, text = _text(source)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{label}:{mark.line + 1}" if mark else label
        raise ScheduleError(
            f"not YAML: {getattr(error, 'problem', error)}", at=place, hint="check indentation"
        ) from error
    if not isinstance(content, dict):
        raise ScheduleError("a schedule is a mapping of sections", at=label, hint="see docs/schedules.md")
    content.setdefault("name", Path(label).stem)
    for key, value in (settings or {}).items():
        _set(content, key, value)
    try:
        return Schedule.model_validate(content)
    except ValidationError as error:
        raise _schedule_error(error, label, node, settings or {}) from error


def _text(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    shipped = resources.files("pqc.schedules") / f"{source}.yaml"
    if path.is_file():
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ScheduleError("the file is too large for a schedule", at=str(path))
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ScheduleError(f"cannot read the file: {error}", at=str(path), hint="is it a text file?") from error
    if "/" not in str(source) and shipped.is_file():
        return f"{source}.yaml", shipped.read_text(encoding="utf-8")
    known = [file.name.removesuffix(".yaml") for file in resources.files("pqc.schedules").iterdir()]
    raise ScheduleError(
        f"no schedule file or shipped schedule '{source}'{nearest(str(source), known)}",
        hint="see `pqc list schedules`",
    )


def _set(content: dict[str, Any], key: str, value: str) -> None:
    *path, last = key.split(".")
    section: Any = content
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ScheduleError(f"'{part}' is not a section", at=f"--set {key}", hint="give the key as section.key")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ScheduleError(f"'{value}' is not YAML", at=f"--set {key}") from error


def _schedule_error(error: ValidationError, label: str, node: Any, settings: dict[str, str]) -> ScheduleError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join(location) or "schedule"
    place = f"--set {key}" if key in settings else f"{label}:{_line(node, location)}"
    if first["type"] == "extra_forbidden":
        known = _keys(location[:-1])
        return ScheduleError(
            f"unknown key '{key}'{nearest(location[-1], known)}",
            at=place,
            hint=f"known keys here: {', '.join(known)}",
        )
    message = first["msg"].removeprefix("Value error, ")
    return ScheduleError(
        f"'{key}': {message}", at=place, hint="see `list schedules`; docs/schedules.md has every key"
    )


def _line(node: Any, location: list[str]) -> int:
    """The line of the deepest part of `location` that the file has."""
    line = node.start_mark.line if node is not None else 0
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        pair = next(((key, value) for key, value in node.value if key.value == part), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line, pair[1]
    return line + 1


def _keys(location: list[str]) -> list[str]:
    """The keys that the section at `location` knows."""
    section: Any = Schedule()
    for part in location:
        section = getattr(section, part, None)
    return list(type(section).model_fields) if isinstance(section, BaseModel) else []
