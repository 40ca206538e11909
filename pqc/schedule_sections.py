"""The sections of a schedule: their keys, types and defaults, and what fits together within one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from pqc import curves
from pqc.blocks import PARTS
from pqc.errors import PqcError
from pqc.fit.settings import Fit
from pqc.fixed_point import FixedPoint
from pqc.functions.losses import DISTILLATION, LOSSES, RANGES, RECONSTRUCTION
from pqc.functions.optimizers import OPTIMIZERS
from pqc.methods import TABLE as METHODS
from pqc.methods import make
from pqc.options import nearest
from pqc.quantizer import ALL_ROUNDINGS, NAMED, PER_TENSOR, Quantizer


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse the first of `names` that is not known.

    Raises:
        ValueError: names the nearest one that is.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{what} '{name}'{nearest(name, known)}; known: {', '.join(known) or 'none'}")


class Misplaced(ValueError):
    """What is wrong, and under which keys of its section."""

    def __init__(self, message: str, path: tuple[str, ...]) -> None:
        super().__init__(message)
        self.path = path


def _known(table: Iterable[str], what: str) -> BeforeValidator:
    def check(name: object) -> object:
        if not isinstance(name, str | None):
            raise ValueError(f"a {what} is given by name")
        refuse_unknown([] if name is None else [name], table, f"no {what}")
        return name

    return BeforeValidator(check)


BITS_HINT = f"bits are three integers: [k, i, f], or {' or '.join(NAMED)}"


def _bits(kind: object) -> dict[str, Any]:
    """The fields of a quantizer that its bits set."""
    if isinstance(kind, str) and kind in NAMED:
        return NAMED[kind]
    if not isinstance(kind, list) or len(kind) != 3 or not all(type(part) is int for part in kind):
        raise ValueError(BITS_HINT)
    return {"bits": FixedPoint(*kind)}


def quantizer(kind: object, base: Quantizer | None = None) -> Quantizer | None:
    """A quantizer as YAML writes it: null, [k, i, f], a name, or a mapping of what differs from `base`.

    Raises:
        ValueError: none of these.
    """
    if kind is None or isinstance(kind, Quantizer):
        return kind
    if not isinstance(kind, dict):
        bits = _bits(kind)
        return Quantizer(**bits) if base is None else replace(base, **bits)
    settings = {str(name): value for name, value in kind.items()}
    if "bits" in settings:
        settings = {**_bits(settings.pop("bits")), **settings}
    elif base is None:
        raise ValueError(f"a quantizer needs bits; {BITS_HINT}")
    return (base or Quantizer(FixedPoint(1, 0, 7))).changed(settings)


def written(kind: Quantizer | None) -> object:
    """The inverse of `quantizer`, without a base."""
    if kind is None:
        return None
    bits = [kind.bits.k, kind.bits.i, kind.bits.f]
    found = {"granularity": kind.sharing, "rounding": kind.rounding, "overflow": kind.overflow, "learns": kind.learns}
    usual = {"granularity": PER_TENSOR, "rounding": None, "overflow": "SAT", "learns": None}
    changed = {name: value for name, value in found.items() if value != usual[name]}
    return {"bits": bits, **changed} if changed else bits


def _curve(text: object) -> str | float:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("a curve is a number or text such as exp(1, 200)")
    try:
        curves.parse(text)
    except PqcError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return text


def _rate(text: object) -> str | float:
    text = _curve(text)
    curve = curves.parse(text)
    if min(curve(n, 9) for n in range(9)) < 0:
        raise ValueError("a learning rate is not negative")
    return text


Bits = Annotated[Quantizer | None, BeforeValidator(quantizer), PlainSerializer(written)]
Curve = Annotated[str | float, BeforeValidator(_curve)]


def _setting(value: object) -> object:
    if not isinstance(value, bool | int | float | str) or value in (math.inf, -math.inf) or value != value:
        raise ValueError("an option is a finite number, true, false or text")
    return value


Setting = Annotated[bool | int | float | str, BeforeValidator(_setting)]
LearningRate = Annotated[str | float, BeforeValidator(_rate)]


class Section(BaseModel):
    """A part of a schedule; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _options(method: str | None) -> list[str]:
    return [one.name for one in fields(METHODS[method])] if method else []


def _make(method: str, options: dict[str, Setting]) -> None:
    try:
        make(method, options)
    except PqcError as error:
        raise ValueError(error.message) from error


class Pruning(Section):
    """Which weights are pruned, and how.

    Args:
        masks: a file of masks that hold from the first epoch on, beside those that a method learns; see
            `pqc.fixed_masks`. In a file it is relative to that file.
    """

    method: Annotated[str | None, _known(METHODS, "pruning method")] = None
    options: dict[str, Setting] = {}
    layers: dict[str, dict[str, Setting]] = {}
    pruning_first: bool = True
    shrink: bool = False
    exclude: tuple[str, ...] = ()
    unmatched: Literal["error", "skip"] = "error"
    masks: str | None = None

    @model_validator(mode="after")
    def _options_fit(self) -> Pruning:
        for options in (self.options, *self.layers.values()):
            refuse_unknown(options, _options(self.method), f"'{self.method}' has no option")
            if self.method:
                _make(self.method, {**self.options, **options})
        return self


class Target(Section):
    """What the finished network must have."""

    sparsity: Annotated[float | None, Field(ge=0, lt=1)] = None
    ebops: Annotated[float | None, Field(gt=0)] = None


TENSORS = {
    "weight": "weights",
    "bias": "biases",
    "input": "inputs",
    "output": "outputs",
    **dict.fromkeys(PARTS, "inputs"),
}
"""What a layer, a softmax or a normalization may round in its own way, and where the others' way is said."""


def _named(content: object) -> object:
    return {"method": content} if isinstance(content, str) else content


class RangeCalibration(Section):
    """How sign and integer bits follow from data; see `pqc.calibration.Calibration`."""

    method: Literal["mse", "min-max", "percentile", "entropy"] = "mse"
    percent: Annotated[float | None, Field(gt=0, le=100)] = None

    @model_validator(mode="after")
    def _percent_is_used(self) -> RangeCalibration:
        if self.percent is not None and self.method != "percentile":
            raise ValueError("percent goes with method: percentile")
        return self


class Quantization(Section):
    """Fixed point types (k, i, f) of what is rounded; null leaves it in float.

    Args:
        layers: what layers do in their own way: quantizers by pattern and by weight, bias, input, output, or a part
            of a softmax or normalization (`pqc.blocks.PARTS`).
        calibrate_layers: calibrate these, too; false keeps them as written.
        rounding: what holds where a quantizer does not say it.
        calibrate: choose sign and integer bits from data.
        calibration: how; a word is its method, and null leaves it off, too.
        integer_bits_decay: how many integer bits that follow their numbers lose in a step that needs fewer.
        wrap_in_training: let numbers wrap in a training step too.
        price_signs: whether sign bits are paid for in the loss.
        relu_multiplier: learn a power of two that what enters each ReLU is multiplied by.
    """

    weights: Bits = Quantizer(FixedPoint(1, 0, 7))
    biases: Bits = Quantizer(FixedPoint(1, 0, 7))
    inputs: Bits = Quantizer(FixedPoint(0, 0, 7))
    outputs: Bits = None
    layers: dict[str, dict[str, Any]] = {}
    calibrate_layers: bool = True
    rounding: Annotated[str, _known(ALL_ROUNDINGS, "rounding mode")] = "ROUND"
    calibrate: bool = True
    calibration: Annotated[RangeCalibration | None, BeforeValidator(_named)] = RangeCalibration()
    integer_bits_decay: Annotated[float, Field(ge=0)] = 0.01
    wrap_in_training: bool = False
    price_signs: bool = True
    relu_multiplier: bool = False
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _layers_fit(self) -> Quantization:
        self.overrides()
        return self

    def overrides(self) -> dict[str, dict[str, Quantizer | None]]:
        """The layers' own quantizers by pattern and tensor: what they say, on top of what all have."""
        found: dict[str, dict[str, Quantizer | None]] = {}
        for pattern, kinds in self.layers.items():
            found[pattern] = {}
            for name, kind in kinds.items():
                try:
                    refuse_unknown([name], TENSORS, "no tensor")
                    found[pattern][name] = quantizer(kind, getattr(self, TENSORS[name]))
                except ValueError as error:
                    raise Misplaced(f"layers: '{pattern}': {name}: {error}", ("layers", pattern, name)) from error
        return found

    @property
    def learns_bits(self) -> bool:
        """Whether bits are trained."""
        return any(kind.learns_bits for kind in self._kinds())

    @property
    def learns_scales(self) -> bool:
        """Whether scales are trained."""
        return any(kind.learns_scale for kind in self._kinds())

    def _kinds(self) -> list[Quantizer]:
        own = [kind for kinds in self.overrides().values() for kind in kinds.values()]
        kinds = [self.weights, self.biases, self.inputs, self.outputs, *own]
        return [kind for kind in kinds if kind is not None]


class OptimizerSection(Section):
    """How weights move."""

    name: Annotated[str, _known(OPTIMIZERS, "optimizer")] = "adam"
    options: dict[str, float] = {}

    @model_validator(mode="after")
    def _options_exist(self) -> OptimizerSection:
        known = [one.name for one in fields(OPTIMIZERS[self.name])]
        refuse_unknown(self.options, known, f"'{self.name}' has no option")
        options: dict[str, Any] = {**self.options}
        OPTIMIZERS[self.name](**options)
        return self


class Training(Section):
    """The loss, the optimizer, and the batches.

    Args:
        normal_classes: train on rows of these classes only, with the input for the target; other classes are
            anomalies to test with.
        batch_norm: `fold` it into the layers before anything else, or `train` it with statistics of its own.
    """

    loss: Annotated[str, _known(LOSSES, "loss")] = "cross-entropy"
    loss_options: dict[str, float] = {}
    normal_classes: tuple[Annotated[int, Field(ge=0)], ...] = ()
    optimizer: OptimizerSection = OptimizerSection()
    learning_rate: LearningRate = 1e-3
    rates: dict[str, LearningRate] = {}
    decays: dict[str, Annotated[float, Field(ge=0)]] = {}
    clip: Annotated[float | None, Field(gt=0)] = None
    batch: Annotated[int, Field(ge=1)] = 256
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0
    batch_norm: Literal["fold", "train"] = "fold"

    @model_validator(mode="after")
    def _loss_options_exist(self) -> Training:
        known = [attribute.name for attribute in LOSSES[self.loss].bodies()[0].attribute_proto]
        refuse_unknown(self.loss_options, known, f"'{self.loss}' has no option")
        for option, value in self.loss_options.items():
            words, holds = RANGES[option]
            with np.errstate(over="ignore"):
                if not holds(float(np.float32(value))):
                    raise ValueError(f"loss_options: {option} is {words}, not {value:g}")
        return self

    @model_validator(mode="after")
    def _loss_reconstructs(self) -> Training:
        if self.normal_classes and self.loss not in RECONSTRUCTION:
            raise ValueError(f"normal_classes needs a loss of {', '.join(RECONSTRUCTION)}, not {self.loss}")
        return self


class Distill(Section):
    """What is learned from a teacher, beside the labels.

    Args:
        temperature: divides the logits of both; for `kl`.
        alpha: the weight of the teacher's part; 1 - alpha is that of the labels.
        loss: `kl` for the logits of classes, `mse` for any output.
        layers: weights of the mean squared errors between layers' outputs, by shell pattern.
        teacher: an ONNX file or a reference model; null is the model that the run is given.
    """

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    loss: Annotated[str, _known(DISTILLATION, "distillation loss")] = "kl"
    layers: dict[str, Annotated[float, Field(ge=0)]] = {}
    teacher: str | None = None


class Constraint(Section):
    """What an epoch must keep to be the best."""

    sparsity: Annotated[float | None, Field(ge=0, lt=1)] = None
    ebops: Annotated[float | None, Field(gt=0)] = None


class EarlyStopping(Section):
    """When to end a phase: no better validation loss for `patience` epochs."""

    patience: Annotated[int, Field(ge=1)]
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Phase(Section):
    """A stretch of epochs.

    Args:
        statistics: what a batch normalization that is trained normalizes with: those of the `batch`, which the running
            ones follow, or the `running` ones as they stand.
    """

    epochs: Annotated[int, Field(ge=0)] = 0
    quantize: bool = True
    bits: Literal["learned", "frozen"] = "learned"
    statistics: Literal["batch", "running"] = "batch"
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


class FineTuning(Phase):
    """The stretch with everything frozen but the weights."""

    bits: Literal["learned", "frozen"] = "frozen"


class TrainingPhase(Phase):
    """The stretch in which masks are learned, once per round."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
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
    """Pretraining without masks, a search, calibration, training of the masks, fine-tuning with the masks frozen."""

    pretraining: Phase = Phase()
    fit: Fit | None = None
    calibration: Calibration = Calibration()
    training: TrainingPhase = TrainingPhase()
    fine_tuning: FineTuning = FineTuning()

    @model_validator(mode="after")
    def _fits_a_float_network(self) -> Phases:
        if self.fit is not None and self.pretraining.epochs and self.pretraining.quantize:
            raise ValueError("a search starts from a float network: pretraining before it needs quantize: false")
        return self
