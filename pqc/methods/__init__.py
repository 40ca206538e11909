"""The pruning methods, one a file; `TABLE` is the explicit list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from pqc.errors import PassError
from pqc.method import Method
from pqc.methods.activation_pruning import ActivationPruningMethod
from pqc.methods.autosparse import AutoSparseMethod
from pqc.methods.continuous_sparsification import ContinuousSparsificationMethod
from pqc.methods.dst import DynamicSparseTrainingMethod
from pqc.methods.magnitude import MagnitudeMethod
from pqc.methods.mdmm import MDMMMethod
from pqc.methods.pdp import PDPMethod
from pqc.methods.wanda import WandaMethod
from pqc.options import check_options, field_types, nearest, read

TABLE: dict[str, type[Method]] = {
    method.title: method
    for method in (
        MagnitudeMethod,
        ActivationPruningMethod,
        AutoSparseMethod,
        ContinuousSparsificationMethod,
        DynamicSparseTrainingMethod,
        MDMMMethod,
        PDPMethod,
        WandaMethod,
    )
}


def make(name: str, options: Mapping[str, object]) -> Method:
    """The pruning method `name` with its options, given as text or as values.

    Raises:
        PassError: no such method or option, or a value that does not fit.
    """
    if name not in TABLE:
        raise PassError(f"no pruning method '{name}'{nearest(name, TABLE)}", hint="see `pqc list methods`")
    method = TABLE[name]
    check_options(f"method '{name}'", options, [one.name for one in fields(method)])
    kinds = field_types(method)
    try:
        found = method(**{option: _option(option, value, kinds[option]) for option, value in options.items()})
        for option in options:
            _check_float32(option, getattr(found, option))
        return found
    except (ValueError, TypeError, OverflowError) as error:
        raise PassError(f"method '{name}': {error}", hint="docs/methods.md lists its options") from error


def _option(name: str, value: object, kind: object) -> object:
    try:
        return _value(value, kind)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def _value(value: object, kind: object) -> object:
    """An option as its type wants it; numbers may be written as text, whole ones as floats."""
    if isinstance(value, str):
        return read(value, kind)
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"expected true or false and got {value!r}")
    if kind in (int, float):
        return _number(value, kind)
    if kind is str:
        raise ValueError(f"expected text and got {value!r}; put it in quotes")
    return value


def _check_float32(option: str, value: object) -> None:
    """Refuse a number that the graphs, which compute in float32, cannot hold."""
    if isinstance(value, float) and not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(f"{option} is a finite float32 number, not {value:g}")


def _number(value: object, kind: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number and got {value!r}")
    if kind is int and value != int(value):
        raise ValueError(f"expected a whole number and got {value!r}")
    return int(value) if kind is int else float(value)
