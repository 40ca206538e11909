"""PQuantML's config files, read as schedules."""

from __future__ import annotations

from collections.abc import Mapping
from glob import escape
from typing import Any

from pqc.options import nearest
from pqc.reference_config import search
from pqc.reference_config.converted import PHASES, Converted, their_settings
from pqc.reference_config.quantization import quantization
from pqc.reference_config.schema import (
    METHODS,
    PRUNING,
    SECTIONS,
    TRAINING,
    TUNING,
    Pruning,
    Training,
    Tuning,
)
from pqc.reference_config.training import Extras
from pqc.yaml_file import Document

__all__ = ["Converted", "convert", "detects", "their_settings"]

REWINDS = {
    "never": "never",
    "every-round": "every-round",
    "post-training-stage": "post-training-stage",
    "round": "every-round",
    "post-ticket-search": "post-training-stage",
}
"""The last two are the words of older files."""
SEARCHED = "fitcompress"
"""The method whose masks the search finds."""


def detects(content: Mapping[Any, Any]) -> bool:
    """Whether a file's content is a config of the reference: it has one of its sections."""
    return any(section in content for section in SECTIONS)


def convert(document: Document, settings: Mapping[str, str] | None = None) -> Converted:
    """The schedule that a config of the reference describes.

    Args:
        document: the file, with the settings of `their_settings` made.
        settings: all settings; those of the schedule's own keys are still to be made.

    Raises:
        ScheduleError: a wrong type, or something switched on that pqc cannot do and that changes the result.
    """
    converted = Converted(document, settings or {})
    parts = {"pruning": _pruning, "quantization": quantization, "training": _training, "phases": _phases}
    for title, part in parts.items():
        found = part(converted)
        converted.content |= {} if found == {} else {title: found}
    quantizes = converted.content.get("quantization", {}) is not None
    found = search.fit(converted, quantizes=quantizes)
    if found:
        converted.content["phases"]["fit"] = found
        converted.content["phases"]["pretraining"]["quantize"] = False
    _note_tuning(converted)
    return converted


def _phases(converted: Converted) -> dict[str, Any]:
    section = converted.read(TRAINING, Training)
    converted.origins["phases"] = (TRAINING,)
    converted.origins |= {native: (TRAINING, key) for key, native in PHASES.items()}
    return {
        "pretraining": {"epochs": section.pretraining_epochs},
        "training": {"epochs": section.epochs, "rounds": section.rounds, **_rewinding(converted, section)},
        "fine_tuning": {"epochs": section.fine_tuning_epochs},
    }


def _rewinding(converted: Converted, section: Training) -> dict[str, Any]:
    """What is rewound. Weights that were never saved stay, and `every-round` keeps the method's state even then."""
    key = (TRAINING, "rewind")
    if section.rewind not in REWINDS:
        converted.note(key, f"no way to rewind '{section.rewind}'{nearest(section.rewind, REWINDS)}; taken as never")
    rewind = REWINDS.get(section.rewind, "never")
    if rewind == "never":
        return {}
    if 0 <= section.save_weights_epoch < section.epochs:
        return {"rewind": rewind, "save_weights_epoch": section.save_weights_epoch}
    place = (TRAINING, "save_weights_epoch")
    what = f"there is no epoch {section.save_weights_epoch} among {section.epochs}"
    converted.note(place, f"{what}, so no weights are saved and none go back, as in the reference")
    if rewind == "every-round" and section.rounds > 1:
        return {"rewind": rewind, "save_weights_epoch": 0, "rewind_what": []}
    return {}


def _training(converted: Converted) -> dict[str, Any]:
    section = converted.read(TRAINING, Training)
    extras = Extras(section.model_extra or {}, section.epochs)
    for native, key in extras.origins.items():
        converted.origins[f"training.{native}"] = (TRAINING, key)
    for key, text in extras.remarks.items():
        converted.note((TRAINING, key), text)
    for key in extras.left:
        converted.unknown((TRAINING, key), f"the reference leaves it to your own code{_near(key)}")
    missing = ", ".join(name for what, name in extras.missing.items() if not converted.settled(f"training.{what}"))
    if missing:
        text = f"says nothing of {missing}, which the reference leaves to your own code; pqc's defaults hold"
        converted.note((TRAINING,), text)
    return extras.content


def _near(key: str) -> str:
    return nearest(key, Training.model_fields)


def _pruning(converted: Converted) -> dict[str, Any]:
    section = converted.read(PRUNING, Pruning)
    content: dict[str, Any] = {"method": None}
    content["pruning_first"] = converted.read(TRAINING, Training).pruning_first
    converted.origins["pruning.pruning_first"] = (TRAINING, "pruning_first")
    converted.origins["pruning.method"] = (PRUNING, "pruning_method")
    converted.origins["pruning.exclude"] = (PRUNING, "disable_pruning_for_layers")
    if not section.enable_pruning or section.pruning_method is None:
        return content
    if section.pruning_method == SEARCHED or search.is_on(converted):
        return content | _searched(converted, section)
    method = _method(converted, section.pruning_method)
    return content | {"method": section.pruning_method, "options": method.options()} | _excluded(method)


def _searched(converted: Converted, section: Pruning) -> dict[str, Any]:
    """What is pruned where the search finds masks: the reference keeps them from then on, whatever the method."""
    key = (PRUNING, "pruning_method")
    if not search.is_on(converted):
        converted.note(key, "prunes nothing without fitcompress_parameters.enable_fitcompress")
    elif section.pruning_method != SEARCHED:
        converted.note(key, "not taken: the masks of the search hold; --set pruning.method=NAME prunes further")
    return _excluded(section)


def _excluded(section: Pruning) -> dict[str, Any]:
    """Layers left alone. Names of modules that are no layer with weights do no harm in the reference."""
    names = section.disable_pruning_for_layers
    return {"exclude": [escape(name) for name in names], "unmatched": "skip"} if names else {}


def _method(converted: Converted, name: str) -> Pruning:
    """The options of the method, with notes; those of other methods are dropped.

    Raises:
        ScheduleError: no such method, or none that pqc has.
    """
    key = (PRUNING, "pruning_method")
    if name not in METHODS:
        raise converted.refusal(
            key, f"the reference has no method '{name}'{nearest(name, METHODS)}", hint=f"it has {', '.join(METHODS)}"
        )
    method = converted.read(PRUNING, METHODS[name])
    _check_pattern(converted, method)
    for option, text in method.remarks().items():
        converted.note((PRUNING, option), text)
    if name == "cs" and converted.read(TRAINING, Training).pretraining_epochs:
        converted.note((TRAINING, "pretraining_epochs"), "beta starts to grow after them, not before")
    others = {option for other in METHODS.values() for option in other.model_fields}
    for extra in method.model_extra or {}:
        foreign = f"'{name}' has no such key"
        text = foreign if extra in others else f"unknown key{nearest(extra, type(method).model_fields)}"
        converted.unknown((PRUNING, extra), text)
    return method


def _check_pattern(converted: Converted, method: Pruning) -> None:
    n, m = getattr(method, "N", None), getattr(method, "M", None)
    if n is not None and m is not None and not 0 < n < m:
        raise converted.refusal((PRUNING, "N"), f"{n} of {m} cannot be pruned", hint="N is below M, and above 0")


def _note_tuning(converted: Converted) -> None:
    section = converted.read(TUNING, Tuning)
    if any(section.hyperparameter_search.values()):
        key = (TUNING, "hyperparameter_search")
        converted.note(key, "a schedule is one run: `pqc search --space` takes this")
