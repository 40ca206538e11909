"""The dimensions of a search: which keys of a schedule vary, over which values, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, model_validator

from pqc.options import nearest
from pqc.schedule_sections import Section

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

Value = float | int | str
Params = Mapping[str, Value]
HOLE = "{}"
SCHEDULE = "schedule"
"""The dimension that says which schedule is searched around, where there are several."""


def written(value: object) -> str:
    """A value as one line of YAML, as `--set` takes it; floats keep all their digits."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()


def _several(content: object) -> object:
    return [content] if isinstance(content, str) else content


class Parameter(Section):
    """How one key varies, as a space file says it.

    Args:
        real: the bounds of a real number; written `float`.
        whole: the bounds of a whole number; written `int`.
        choice: values to choose from; any that YAML can say.
        log: whether a number is drawn from its logarithm.
        step: the distance of values that are drawn from equal steps.
        template: text with `{}` where the value goes, such as `cosine({}, 1e-4)` or `[1, 0, {}]`; written `as`.
        also: other keys that get the same value.
        when: the parameter is there only if others have one of these values.
    """

    real: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    whole: Annotated[tuple[int, int] | None, Field(alias="int")] = None
    choice: tuple[Any, ...] | None = None
    log: bool = False
    step: Annotated[float | None, Field(gt=0)] = None
    template: Annotated[str, Field(alias="as")] = HOLE
    also: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_kind(self) -> Parameter:
        kinds = [kind for kind in (self.real, self.whole, self.choice) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("give one of float: [low, high], int: [low, high] or choice: [...]")
        if self.choice is None:
            self._check_bounds(kinds[0])
        elif self.log or self.step is not None:
            raise ValueError("log and step go with numbers, not with a choice")
        elif not self.choice or len({written(value) for value in self.choice}) < len(self.choice):
            raise ValueError("a choice is between values that differ")
        if HOLE not in self.template:
            raise ValueError(f"as: '{self.template}' has no {HOLE}, where the value goes")
        return self

    def _check_bounds(self, bounds: Sequence[Any]) -> None:
        low, high = bounds
        if low > high:
            raise ValueError(f"the lower bound {low:g} is above the upper bound {high:g}")
        if self.log and low <= 0:
            raise ValueError(f"a logarithmic range starts above zero, not at {low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together")
        if self.whole is not None and self.step is not None and self.step != round(self.step):
            raise ValueError(f"the step of whole numbers is one, not {self.step:g}")


@dataclass(frozen=True)
class Dimension:
    """One key that varies.

    Args:
        name: the dotted key.
        parameter: how.
        when: for each dimension that this one hangs on, the values with which it is there, as text.
    """

    name: str
    parameter: Parameter
    when: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, name: str, parameter: Parameter) -> Dimension:
        """The dimension of a key."""
        when = {
            key: tuple(written(one) for one in (values if isinstance(values, list) else [values]))
            for key, values in parameter.when.items()
        }
        return cls(name, parameter, when)

    def distribution(self) -> BaseDistribution:
        """What values are drawn from, for trials that were measured elsewhere."""
        from optuna import distributions

        one = self.parameter
        if one.real is not None:
            return distributions.FloatDistribution(*one.real, log=one.log, step=one.step)
        if one.whole is not None:
            return distributions.IntDistribution(*one.whole, log=one.log, step=int(one.step or 1))
        return distributions.CategoricalDistribution(self.choices())

    def suggest(self, trial: Trial) -> Value:
        """Draw the value of a trial; one that it has already stays."""
        one = self.parameter
        if one.real is not None:
            return trial.suggest_float(self.name, *one.real, log=one.log, step=one.step)
        if one.whole is not None:
            return trial.suggest_int(self.name, *one.whole, log=one.log, step=int(one.step or 1))
        return str(trial.suggest_categorical(self.name, self.choices()))

    def choices(self) -> list[str]:
        """The values of a choice, as text."""
        return [written(value) for value in self.parameter.choice or ()]

    def corners(self) -> list[Value]:
        """The outermost values, or every choice: what is checked before a search begins."""
        one = self.parameter
        if one.choice is not None:
            return [*self.choices()]
        return list(dict.fromkeys(one.whole or one.real or ()))

    def record(self) -> dict[str, Any]:
        """The dimension, ready for JSON."""
        low, high = self.parameter.whole or self.parameter.real or (None, None)
        return {"name": self.name, "low": low, "high": high, "log": self.parameter.log, "choices": self.choices()}

    def holds(self, value: object) -> bool:
        """Whether a value, of a trial elsewhere, is one of this dimension."""
        one, bounds = self.parameter, self.parameter.whole or self.parameter.real
        if bounds is None or not isinstance(value, float | int):
            return value in self.choices()
        steps = (value - bounds[0]) / (one.step or (1 if one.whole else math.inf))
        return bounds[0] <= value <= bounds[1] and math.isclose(steps, round(steps), abs_tol=1e-9)

    def settings(self, value: Value) -> dict[str, str]:
        """The value by key, as `--set` takes it."""
        text = value if isinstance(value, str) else written(value)
        return dict.fromkeys((self.name, *self.parameter.also), self.parameter.template.replace(HOLE, text))

    def is_active(self, params: Params) -> bool:
        """Whether the dimension is there with these values of the ones before."""
        return all(key in params and _text(params[key]) in values for key, values in self.when.items())


def _text(value: Value) -> str:
    return value if isinstance(value, str) else written(value)


@dataclass(frozen=True)
class Space:
    """All dimensions, each after those that it hangs on."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Parameter]) -> Space:
        """The space of parameters by key.

        Raises:
            ValueError: `when` names no earlier dimension or a value that it never has, or a key varies twice.
        """
        found: dict[str, Dimension] = {}
        for name, parameter in parameters.items():
            one = Dimension.of(name, parameter)
            for key, values in one.when.items():
                if key not in found:
                    raise ValueError(f"{name}: when: no parameter '{key}' before this one{nearest(key, found)}")
                _refuse_never(name, found[key], values)
            found[name] = one
        keys = [key for one in found.values() for key in (one.name, *one.parameter.also)]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key '{key}' varies twice")
        return cls(tuple(found.values()))

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Draw the values of a trial; those that it has already stay."""
        params: dict[str, Value] = {}
        for one in self.dimensions:
            if one.is_active(params):
                params[one.name] = one.suggest(trial)
        return params

    def settings(self, params: Params) -> dict[str, str]:
        """The settings of a schedule that stand for a point."""
        found: dict[str, str] = {}
        for one in self.dimensions:
            if one.name in params and one.name != SCHEDULE:
                found |= one.settings(params[one.name])
        return found

    def corners(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """Points that show every outermost value of every dimension once, the others at their first values.

        Each comes with the name of the dimension that it shows; the first has first values only, and no name.
        """
        yield "", self._example({})
        for one in self.dimensions:
            for value in one.corners():
                yield one.name, self._example({**self._conditions(one), one.name: value})

    def _example(self, fixed: Params) -> dict[str, Value]:
        params: dict[str, Value] = {}
        for one in self.dimensions:
            if one.is_active(params):
                params[one.name] = fixed.get(one.name, one.corners()[0])
        return params

    def _conditions(self, dimension: Dimension) -> dict[str, Value]:
        """Values of others with which a dimension is there."""
        found: dict[str, Value] = {}
        by_name = {one.name: one for one in self.dimensions}
        for key, values in dimension.when.items():
            found |= self._conditions(by_name[key]) | {key: values[0]}
        return found


def _refuse_never(name: str, other: Dimension, values: Sequence[str]) -> None:
    """Raise ValueError where a condition waits for a choice that is never made."""
    known = [str(value) for value in other.corners()]
    for value in values:
        if other.parameter.choice is not None and value not in known:
            raise ValueError(f"{name}: when: '{other.name}' is never {value}{nearest(value, known)}")
