"""Schedules: what is compressed and when, as validated YAML."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pqc import curves
from pqc.errors import PqcError, ScheduleError
from pqc.fixed_point import FixedPoint
from pqc.functions.losses import LOSSES
from pqc.functions.optimizers import OPTIMIZERS
from pqc.functions.quant import ROUNDING_MODES
from pqc.method import Method
from pqc.methods import TABLE as METHODS
from pqc.methods import make
from pqc.options import nearest
from pqc.reference_config import Converted, convert, detects, their_settings
from pqc.yaml_file import HINT, Document, Note, value

MAX_FILE_BYTES = 1_000_000


def _refuse_unknown(names: object, known: list[str], what: str) -> None:
    """Raise ValueError for the first of `names` that is not known."""
    for name in names:  # type: ignore[attr-defined]
        if name not in known:
            raise ValueError(f"{what} '{name}'{nearest(str(name), known)}; known: {', '.join(known) or 'none'}")


def _known(table: object, what: str) -> BeforeValidator:
    def check(name: object) -> object:
        if not isinstance(name, str | None):
            raise ValueError(f"a {what} is given by name")
        names = list(table)  # type: ignore[call-overload]
        _refuse_unknown([] if name is None else [name], names, f"no {what}")
        return name

    return BeforeValidator(check)


def _bits(kind: object) -> object:
    if kind is None or isinstance(kind, FixedPoint):
        return kind
    if not isinstance(kind, list) or len(kind) != 3 or not all(type(part) is int for part in kind):
        raise ValueError("bits are three integers: [k, i, f]")
    return FixedPoint(*kind)


def _curve(text: object) -> object:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("a curve is a number or text such as exp(1, 200)")
    try:
        curves.parse(text)
    except PqcError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return text


def _rate(text: object) -> object:
    curve = curves.parse(_curve(text))  # type: ignore[arg-type]
    if min(curve(n, 9) for n in range(9)) < 0:
        raise ValueError("a learning rate is not negative")
    return text


Bits = Annotated[
    FixedPoint | None,
    BeforeValidator(_bits),
    PlainSerializer(lambda kind: None if kind is None else [kind.k, kind.i, kind.f]),
]
Curve = Annotated[str | float, BeforeValidator(_curve)]
Setting = bool | int | float | str
LearningRate = Annotated[str | float, BeforeValidator(_rate)]


class Section(BaseModel):
    """A part of a schedule; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def _options(method: str | None) -> list[str]:
    return [one.name for one in fields(METHODS[method])] if method else []


def _make(method: str, options: dict[str, Setting]) -> None:
    try:
        make(method, options)
    except PqcError as error:
        raise ValueError(error.message) from error


class Pruning(Section):
    """Which weights are pruned, and how."""

    method: Annotated[str | None, _known(METHODS, "pruning method")] = None
    options: dict[str, Setting] = {}
    layers: dict[str, dict[str, Setting]] = {}
    pruning_first: bool = True
    exclude: tuple[str, ...] = ()
    unmatched: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _options_fit(self) -> Pruning:
        for options in (self.options, *self.layers.values()):
            _refuse_unknown(options, _options(self.method), f"'{self.method}' has no option")
            if self.method:
                _make(self.method, {**self.options, **options})
        return self


class Target(Section):
    """What the finished network must have."""

    sparsity: Annotated[float | None, Field(ge=0, lt=1)] = None


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
        _refuse_unknown(self.options, known, f"'{self.name}' has no option")
        return self


class Training(Section):
    """The loss, the optimizer, and the batches."""

    loss: Annotated[str, _known(LOSSES, "loss")] = "cross-entropy"
    loss_options: dict[str, float] = {}
    optimizer: OptimizerSection = OptimizerSection()
    learning_rate: LearningRate = 1e-3
    rates: dict[str, LearningRate] = {}
    decays: dict[str, Annotated[float, Field(ge=0)]] = {}
    clip: Annotated[float | None, Field(gt=0)] = None
    batch: Annotated[int, Field(ge=1)] = 256
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _loss_options_exist(self) -> Training:
        known = [attribute.name for attribute in LOSSES[self.loss].bodies()[0].attribute_proto]
        _refuse_unknown(self.loss_options, known, f"'{self.loss}' has no option")
        return self


class Constraint(Section):
    """What an epoch must keep to be the best."""

    sparsity: Annotated[float | None, Field(ge=0, lt=1)] = None
    ebops: Annotated[float | None, Field(gt=0)] = None


class EarlyStopping(Section):
    """When to end a phase: no better validation loss for `patience` epochs."""

    patience: Annotated[int, Field(ge=1)]
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Phase(Section):
    """A stretch of epochs."""

    epochs: Annotated[int, Field(ge=0)] = 0
    learning_rate: LearningRate | None = None
    rates: dict[str, LearningRate] | None = None
    select: Literal["last", "best"] = "last"
    constraint: Constraint = Constraint()
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _constraint_is_used(self) -> Phase:
        if self.constraint != Constraint() and self.select != "best":
            raise ValueError("a constraint needs select: best")
        return self


class TrainingPhase(Phase):
    """The stretch in which masks are learned, once per round."""

    rounds: Annotated[int, Field(ge=1)] = 1
    rewind: Literal["never", "every-round", "post-training-stage"] = "never"
    rewind_what: tuple[Literal["weights", "biases", "states", "moments"], ...] = ("weights",)
    save_weights_epoch: Annotated[int, Field(ge=-1)] = -1
    ramps: Literal["phase", "global"] = "phase"

    @model_validator(mode="after")
    def _rewind_has_source(self) -> TrainingPhase:
        if self.rewind != "never" and not 0 <= self.save_weights_epoch < max(self.epochs, 1):
            raise ValueError(f"rewind '{self.rewind}' needs save_weights_epoch between 0 and {max(self.epochs - 1, 0)}")
        return self


class Calibration(Section):
    """Batches that only feed the methods' statistics: masks from data, without labels and without training."""

    batches: Annotated[int, Field(ge=0)] = 0


class Phases(Section):
    """Pretraining without masks, calibration, training of the masks, fine-tuning with the masks frozen."""

    pretraining: Phase = Phase()
    calibration: Calibration = Calibration()
    training: TrainingPhase = TrainingPhase()
    fine_tuning: Phase = Phase()


class Schedule(Section):
    """All that a run does to a model."""

    name: str = ""
    description: str = ""
    target: Target = Target()
    pruning: Pruning = Pruning()
    quantization: Quantization | None = Quantization()
    training: Training = Training()
    controls: dict[str, Curve] = {}
    phases: Annotated[Phases, Field(validate_default=True)] = Phases()

    @field_validator("phases")
    @classmethod
    def _masks_are_learned(cls, phases: Phases, info: ValidationInfo) -> Phases:
        if _method(info) and not phases.training.epochs and not phases.calibration.batches:
            raise ValueError("a pruning method needs phases.training.epochs; without training its masks mean nothing")
        for phase in (phases.pretraining, phases.training, phases.fine_tuning):
            _refuse_unknown(phase.rates or {}, _roles(_method(info)), "rates: no role")
        return phases

    @field_validator("training")
    @classmethod
    def _roles_exist(cls, training: Training, info: ValidationInfo) -> Training:
        for key in ("rates", "decays"):
            _refuse_unknown(getattr(training, key), _roles(_method(info)), f"{key}: no role")
        return training

    @field_validator("controls")
    @classmethod
    def _controls_exist(cls, controls: dict[str, Curve], info: ValidationInfo) -> dict[str, Curve]:
        method = _method(info)
        _refuse_unknown(controls, list(method.controls()) if method else [], "no control")
        return controls

    @cached_property
    def method(self) -> Method | None:
        """The pruning method with its options, set to the target."""
        return _aimed(self.pruning, self.target)

    def text(self) -> str:
        """The resolved schedule as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fingerprint(self) -> str:
        """A hash of everything but name and description."""
        return hashlib.sha256(
            yaml.safe_dump(self.model_dump(mode="json", exclude={"name", "description"})).encode()
        ).hexdigest()


def _method(info: ValidationInfo) -> Method | None:
    """The schedule's pruning method, or None; also where a section before is wrong itself."""
    pruning, target = info.data.get("pruning"), info.data.get("target")
    return None if pruning is None or target is None else _aimed(pruning, target)


def _roles(method: Method | None) -> list[str]:
    """What learning rates and decays can tell apart."""
    return ["weight", "bias", *(state.name for state in (method.states() if method else ()) if state.trained)]


def _aimed(pruning: Pruning, target: Target) -> Method | None:
    if pruning.method is None:
        return None
    method = make(pruning.method, pruning.options)
    return method if target.sparsity is None else method.aim(target.sparsity)


def names() -> dict[str, str]:
    """The shipped schedules with their descriptions."""
    return {name: load(name).description for name in _shipped()}


def load(source: str | Path, settings: dict[str, str] | None = None) -> Schedule:
    """Read a schedule file, or a shipped schedule by name, and forget the notes; see `read`."""
    return read(source, settings)[0]


def read(source: str | Path, settings: dict[str, str] | None = None) -> tuple[Schedule, list[Note]]:
    """Read a schedule file, a shipped schedule by name, or a config file of the reference library.

    Args:
        source: a path or a name.
        settings: values by dotted key, as `--set` gives them; each value is YAML. A config of the reference takes
            keys of both forms.

    Returns:
        the schedule, and what became of the keys of a config that have no exact counterpart.

    Raises:
        ScheduleError: with file, line, key and the nearest valid key.
    """
    label, text = _text(source)
    file = Document(text, label)
    document: Document | Converted = file
    ours = dict(settings or {})
    if detects(file.content):
        for setting, key in their_settings(ours).items():
            _set(file.content, key, value(ours.pop(setting), setting))
        document = convert(file, settings or {})
    document.content.setdefault("name", Path(label).stem)
    for key, written in ours.items():
        _set(document.content, key, value(written, key))
    try:
        return Schedule.model_validate(document.content), document.notes
    except ValidationError as error:
        raise _schedule_error(error, document, ours) from error


def _shipped() -> list[str]:
    folder = resources.files("pqc.schedules")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _text(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    if path.is_file():
        return str(path), _read(path)
    if str(source) in _shipped():
        file = resources.files("pqc.schedules") / f"{source}.yaml"
        return file.name, file.read_text(encoding="utf-8")
    raise ScheduleError(
        f"no schedule file or shipped schedule '{source}'{nearest(str(source), _shipped())}",
        hint="see `pqc list schedules`",
    )


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ScheduleError("the file is too large for a schedule", at=str(path), hint=HINT)
    try:
        text = path.read_text(encoding="utf-8-sig")
        # JSON is YAML but for tabs, which JSON has between its words only.
        return text.replace("\t", " ") if path.suffix == ".json" else text
    except (OSError, UnicodeDecodeError) as error:
        raise ScheduleError(f"cannot read the file: {error}", at=str(path), hint="is it a text file?") from error


def _set(content: dict[str, Any], key: str, setting: Any) -> None:
    *path, last = key.split(".")
    section: Any = content
    for part in path:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ScheduleError(f"'{part}' is not a section", at=f"--set {key}", hint="give the key as section.key")
    section[last] = setting


def _schedule_error(error: ValidationError, document: Document | Converted, settings: dict[str, str]) -> ScheduleError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join(location)
    place = _culprit(key, settings)
    if place is None:
        key, place = document.find(location)
    if first["type"] == "extra_forbidden":
        known = _keys(location[:-1])
        return ScheduleError(
            f"unknown key '{key}'{nearest(location[-1], known)}",
            at=place,
            hint=f"known keys here: {', '.join(known)}",
        )
    return ScheduleError(f"'{key}': {first['msg'].removeprefix('Value error, ')[:500]}", at=place, hint=HINT)


def _culprit(key: str, settings: dict[str, str]) -> str | None:
    """The setting that an error at `key` comes from: one above it, at it or below it."""
    for setting in settings:
        if f"{setting}.".startswith(f"{key}.") or f"{key}.".startswith(f"{setting}."):
            return f"--set {setting}"
    return None


def _keys(location: list[str]) -> list[str]:
    """The keys that the section at `location` knows."""
    section: Any = Schedule()
    for part in location:
        section = getattr(section, part, None)
    return list(type(section).model_fields) if isinstance(section, BaseModel) else []
