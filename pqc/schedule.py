"""Schedules: what is compressed and when, as validated YAML."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from pqc import curves, files
from pqc.errors import ScheduleError
from pqc.method import RAMP, Method
from pqc.methods import make
from pqc.names import BITS_WEIGHT, EBOPS_WEIGHT
from pqc.options import nearest
from pqc.quantizer_sites import FRACTION, INTEGER
from pqc.reference_config import Converted, convert, detects, their_settings
from pqc.scales import SCALE
from pqc.schedule_lint import lint
from pqc.schedule_sections import (
    Curve,
    Distill,
    Misplaced,
    Phases,
    Pruning,
    Quantization,
    Section,
    Setting,
    Target,
    Training,
    refuse_unknown,
)
from pqc.tracking.settings import Tracking
from pqc.trained_constants import ROLES
from pqc.yaml_file import HINT, Document, Note, value

MAX_FILE_BYTES = 1_000_000
PRICES: dict[str, Curve] = {EBOPS_WEIGHT: 1e-5, BITS_WEIGHT: 0.0}
"""What learned bits cost in the loss, where the schedule does not say."""


class Schedule(Section):
    """All that a run does to a model."""

    name: str = ""
    description: str = ""
    pruning: Pruning = Pruning()
    target: Annotated[Target, Field(validate_default=True)] = Target()
    quantization: Quantization | None = Quantization()
    training: Training = Training()
    distill: Distill | None = None
    controls: dict[str, Curve] = Field(default_factory=dict)
    phases: Annotated[Phases, Field(validate_default=True)] = Phases()
    tracking: Tracking = Tracking()

    @field_validator("target")
    @classmethod
    def _target_fits(cls, target: Target, info: ValidationInfo) -> Target:
        pruning = info.data.get("pruning")
        if pruning is not None:
            if target.sparsity is not None and pruning.method is None:
                raise ValueError("a sparsity target needs a pruning method")
            _aimed(pruning, target)
            for pattern, options in pruning.layers.items():
                _refuse_another_share(pattern, options, _aimed(pruning, target, options))
        return target

    @field_validator("phases")
    @classmethod
    def _masks_are_learned(cls, phases: Phases, info: ValidationInfo) -> Phases:
        method = _method(info)
        # What training alone moves is no score before it.
        learned = {state.name for state in method.states() if state.trained} if method else set()
        calibrates = phases.calibration.batches and method and not set(method.score().reads) <= learned
        if method and not phases.training.epochs and not calibrates:
            raise ValueError("a pruning method needs phases.training.epochs; without training its masks mean nothing")
        if phases.fit is not None and info.data.get("pruning", Pruning()).masks is not None:
            raise ValueError("a search finds masks of its own; take out pruning.masks")
        if phases.fit is not None and info.data.get("training", Training()).batch_norm == "train":
            raise ValueError("a search measures weights with batch normalization folded; say training.batch_norm: fold")
        if phases.fit is not None and not phases.fit.keep_masks and method is None:
            raise ValueError("fit: keep_masks: false leaves the masks to a pruning method, and there is none")
        if phases.fit is not None and phases.fit.quantize and info.data.get("quantization") is None:
            raise ValueError("a search of bit widths needs quantization; or say fit: {quantize: false, prune: true}")
        for phase in (phases.pretraining, phases.training, phases.fine_tuning):
            refuse_unknown(phase.rates or {}, _roles(info), "rates: no role")
        return phases

    @field_validator("training")
    @classmethod
    def _roles_exist(cls, training: Training, info: ValidationInfo) -> Training:
        for key in ("rates", "decays"):
            refuse_unknown(getattr(training, key), _roles(info), f"{key}: no role")
        return training

    @field_validator("quantization")
    @classmethod
    def _bits_are_learned(cls, quantization: Quantization | None, info: ValidationInfo) -> Quantization | None:
        target = info.data.get("target")
        if target is not None and target.ebops is not None and not (quantization and quantization.learns_bits):
            raise ValueError("target.ebops needs a quantizer that learns bits")
        return quantization

    @field_validator("distill")
    @classmethod
    def _classes_are_compared(cls, distill: Distill | None, info: ValidationInfo) -> Distill | None:
        training = info.data.get("training")
        if distill is not None and distill.loss == "kl" and training and training.loss != "cross-entropy":
            raise ValueError(f"loss 'kl' goes with training.loss cross-entropy, not {training.loss}; use mse")
        return distill

    @field_validator("controls")
    @classmethod
    def _controls_exist(cls, controls: dict[str, Curve], info: ValidationInfo) -> dict[str, Curve]:
        method, quantization = _method(info), info.data.get("quantization")
        known = [*(method.controls() if method else ()), *(PRICES if quantization and quantization.learns_bits else ())]
        refuse_unknown(controls, known, "no control")
        if RAMP in controls and not _is_share(controls[RAMP]):
            raise ValueError(f"{RAMP} is a share from 0 to 1, not {controls[RAMP]}")
        if method and method.strength in controls and method.penalty() is None:
            raise ValueError(
                f"'{method.strength}' is zero in pruning.options, so there is no penalty; give it there too"
            )
        return controls

    @cached_property
    def method(self) -> Method | None:
        """The pruning method with its options, set to the target."""
        return _aimed(self.pruning, self.target)

    @property
    def trains(self) -> bool:
        """Whether anything is trained, for which targets are needed."""
        return any(phase.epochs for phase in (self.phases.pretraining, self.phases.training, self.phases.fine_tuning))

    def changed(self, **sections: Any) -> Schedule:
        """The schedule with other sections.

        Raises:
            ValidationError: they do not fit together.
        """
        return Schedule(**{name: getattr(self, name) for name in Schedule.model_fields} | sections)

    def text(self) -> str:
        """The resolved schedule as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fingerprint(self) -> str:
        """A hash of everything but name, description, where the run is tracked, and where a file of masks lies."""
        left_out: Any = {"name": True, "description": True, "tracking": True, "pruning": {"masks"}}
        return hashlib.sha256(yaml.safe_dump(self.model_dump(mode="json", exclude=left_out)).encode()).hexdigest()


def _method(info: ValidationInfo) -> Method | None:
    """The schedule's pruning method, or None; also where a section before is wrong itself."""
    pruning, target = info.data.get("pruning"), info.data.get("target")
    return None if pruning is None or target is None else _aimed(pruning, target)


def _is_share(text: str | float) -> bool:
    """Whether a curve stays between 0 and 1, tried at a few places."""
    curve = curves.parse(text)
    return all(0 <= curve(n, 9) <= 1 for n in range(9))


def _roles(info: ValidationInfo) -> list[str]:
    """What learning rates and decays can tell apart."""
    method, quantization = _method(info), info.data.get("quantization")
    bits = [FRACTION, INTEGER] if quantization and quantization.learns_bits else []
    bits += [SCALE] if quantization and quantization.learns_scales else []
    states = [state.name for state in (method.states() if method else ()) if state.trained]
    return ["weight", "bias", *bits, *ROLES, *states]


def _aimed(pruning: Pruning, target: Target, changes: Mapping[str, Setting] | None = None) -> Method | None:
    """The method set to the target, or None; `changes` are the options of some layers."""
    if pruning.method is None:
        return None
    method = make(pruning.method, {**pruning.options, **(changes or {})})
    return method if target.sparsity is None else method.aim(target.sparsity)


def _refuse_another_share(pattern: str, options: Mapping[str, Setting], aimed: Method | None) -> None:
    """Raise ValueError where the options of some layers set what the target has set."""
    if aimed is None:
        return
    for option in options:
        if getattr(aimed, option) != getattr(make(aimed.title, options), option):
            raise ValueError(
                f"pruning.layers: '{pattern}' sets {option} to {options[option]}, which the target decides"
            )


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
        the schedule, and notes: what became of the keys of a config that have no exact counterpart, and what is
        doubtful.

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
    _place_masks(document.content, Path(label).parent)
    for key, written in ours.items():
        _set(document.content, key, value(written, key))
    try:
        plan = Schedule.model_validate(document.content)
    except ValidationError as error:
        raise _schedule_error(error, document, ours) from error
    return plan, [*document.notes, *_doubts(plan, document, ours)]


def _place_masks(content: dict[str, Any], folder: Path) -> None:
    """Take the file of masks relative to the folder of the schedule that names it."""
    pruning = content.get("pruning")
    if isinstance(pruning, dict) and isinstance(pruning.get("masks"), str):
        pruning["masks"] = str(folder / pruning["masks"])


def _doubts(plan: Schedule, document: Document | Converted, settings: dict[str, str]) -> Iterator[Note]:
    for location, text in lint(plan.quantization):
        place = _culprit(".".join(location), settings)
        key, where = (".".join(location), place) if place is not None else document.find(list(location))
        yield Note(where, key, text)


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
    reason = files.no_file(path) if str(source) else None
    if reason is not None:
        raise ScheduleError(f"no schedule file: {reason}", at=str(path), hint="see `pqc list schedules`")
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
    reason = first.get("ctx", {}).get("error")
    location += reason.path if isinstance(reason, Misplaced) else ()
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
    section: type[BaseModel] | None = Schedule
    for part in location:
        field = None if section is None else section.model_fields.get(part)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return [] if section is None else list(section.model_fields)
