"""The reference library's `hpo_parameters`, read as a space file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pqc.errors import ScheduleError
from pqc.options import nearest
from pqc.reference_config.schema import (
    METHODS,
    PRUNING,
    QUANTIZATION,
    TRAINING,
    TUNING,
    Pruning,
    Quantization,
    Training,
)
from pqc.reference_config.training import ALIASES
from pqc.yaml_file import Document

HINT = "docs/search.md says what is taken of hpo_parameters"
SAMPLERS = {
    "TPESampler": "tpe",
    "RandomSampler": "random",
    "CmaEsSampler": "cma-es",
    "GPSampler": "gp",
    "NSGAIISampler": "nsga-ii",
    "NSGAIIISampler": "nsga-iii",
    "QMCSampler": "qmc",
    "GridSampler": "grid",
    "BruteForceSampler": "brute-force",
}
KEYS = ("experiment_name", "model_name", "sampler", "num_trials", "hyperparameter_search")
GROUPS = ("numerical", "categorical")
Key = list[str]


def search(document: Document) -> tuple[dict[str, Any], dict[str, Key]]:
    """A space file's content, and where in the config each parameter stands.

    The library writes a value into the first section that has its name: training, pruning, quantization. It drops a
    name that none has; here that is an error. Numbers are real if one of their bounds is.

    Raises:
        ScheduleError: no search, or a name, type or sampler that does not exist.
    """
    tuning = _mapping(document, document.content, [TUNING])
    _refuse_unknown(document, tuning, [TUNING], KEYS)
    wanted = _mapping(document, tuning, [TUNING, "hyperparameter_search"])
    _refuse_unknown(document, wanted, [TUNING, "hyperparameter_search"], GROUPS)
    content: dict[str, Any] = {"parameters": {}}
    places: dict[str, Key] = {}
    for group in GROUPS:
        where = [TUNING, "hyperparameter_search", group]
        for name, values in _mapping(document, wanted, where).items():
            key = _section(document, name, [*where, name])
            content["parameters"][key] = _parameter(document, values, group, [*where, name])
            places[key] = [*where, name]
    if not places:
        raise _refusal(document, [TUNING], "there is nothing to vary in hyperparameter_search")
    return {**content, **_sampler(document, tuning), **_trials(tuning)}, places


def _section(document: Document, name: str, where: Key) -> str:
    """The dotted key of the config that a name stands for."""
    method = (document.content.get(PRUNING) or {}).get("pruning_method", "cs")
    known = {
        TRAINING: [*Training.model_fields, *(alias for _, names in ALIASES.values() for alias in names)],
        PRUNING: [*METHODS.get(str(method), Pruning).model_fields],
        QUANTIZATION: [*Quantization.model_fields],
    }
    found = next((section for section, names in known.items() if name in names), None)
    if found is None:
        names = [one for section in known.values() for one in section]
        raise _refusal(document, where, f"no section has a key '{name}'{nearest(name, names)}")
    return f"{found}.{name}"


def _parameter(document: Document, values: Any, group: str, where: Key) -> dict[str, Any]:
    if group == "categorical":
        return {"choice": values}
    numbers = [value for value in values if type(value) in (int, float)] if isinstance(values, list) else []
    if len(numbers) not in (2, 3) or len(numbers) != len(values):
        raise _refusal(document, where, "a numerical parameter is [low, high] or [low, high, step]")
    kind = "float" if any(isinstance(number, float) for number in numbers) else "int"
    return {kind: numbers[:2], **({"step": numbers[2]} if len(numbers) == 3 else {})}


def _sampler(document: Document, tuning: Mapping[str, Any]) -> dict[str, Any]:
    where = [TUNING, "sampler"]
    section = _mapping(document, tuning, where)
    _refuse_unknown(document, section, where, ("type", "params"))
    name = str(section.get("type", "TPESampler"))
    if name not in SAMPLERS:
        raise _refusal(document, [*where, "type"], f"no sampler '{name}'{nearest(name, SAMPLERS)}")
    return {"sampler": {"name": SAMPLERS[name], "options": section.get("params") or {}}}


def _trials(tuning: Mapping[str, Any]) -> dict[str, Any]:
    """The library's default of no trials is no search: what is missing is pqc's default."""
    return {"trials": tuning["num_trials"]} if tuning.get("num_trials") else {}


def _mapping(document: Document, above: Mapping[str, Any], where: Key) -> dict[str, Any]:
    content = above.get(where[-1])
    if content is not None and not isinstance(content, dict):
        raise _refusal(document, where, "a section is a mapping")
    return {str(key): value for key, value in (content or {}).items()}


def _refuse_unknown(document: Document, section: Mapping[str, Any], where: Key, known: tuple[str, ...]) -> None:
    for key in section:
        if key not in known:
            raise _refusal(document, [*where, key], f"unknown key '{key}'{nearest(key, known)}")


def _refusal(document: Document, where: Key, message: str) -> ScheduleError:
    key, place = document.find(where)
    return ScheduleError(f"'{key}': {message}", at=place, hint=HINT)
