"""A schedule in the making: its content, its notes, and where the keys of the config stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pqc.errors import ScheduleError
from pqc.options import nearest
from pqc.reference_config.schema import SECTIONS, TRAINING, Section
from pqc.yaml_file import Document, Note

Kind = TypeVar("Kind", bound=Section)
Key = tuple[str, ...]

WORDS = ("name", "description")
"""Keys of pqc's own that may stand beside the reference's sections."""
HINT = "docs/schedules.md says what is taken from such a file"
TITLES = ("pruning", "quantization", "training")
NATIVE = (*TITLES, "phases", "controls", "target")
PHASES: dict[str, str] = {
    "pretraining_epochs": "phases.pretraining.epochs",
    "epochs": "phases.training.epochs",
    "rounds": "phases.training.rounds",
    "rewind": "phases.training.rewind",
    "save_weights_epoch": "phases.training.save_weights_epoch",
    "fine_tuning_epochs": "phases.fine_tuning.epochs",
}


def their_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings to make before a config is converted, and the key of the config that each changes.

    The phases' own keys are among them, since what is rewound depends on several.
    """
    twins = {native: f"{TRAINING}.{key}" for key, native in PHASES.items()}
    return {key: twins.get(key, key) for key in settings if key in twins or key.partition(".")[0] in SECTIONS}


class Converted:
    """A schedule made of a config, with the notes, and where its keys stood.

    Args:
        document: the file.
        settings: all settings.
    """

    def __init__(self, document: Document, settings: Mapping[str, str]) -> None:
        self.label = document.label
        self.notes: list[Note] = []
        self.origins: dict[str, Key] = {title: (section,) for title, section in zip(TITLES, SECTIONS, strict=False)}
        self._document = document
        self._theirs = their_settings(settings)
        self._ours = settings.keys() - self._theirs.keys()
        self._refuse_mixture()
        self.content: dict[str, Any] = {word: document.content[word] for word in WORDS if word in document.content}

    def read(self, name: str, kind: type[Kind]) -> Kind:
        """A section with its defaults."""
        content = self.raw(name)
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise self.refusal((name, *map(str, first["loc"])), first["msg"]) from error

    def raw(self, name: str) -> dict[str, Any]:
        """A section as it is written."""
        content = self._document.content.get(name)
        if content is not None and not isinstance(content, dict):
            raise self.refusal((name,), "a section is a mapping")
        return {str(key): value for key, value in (content or {}).items()}

    def place(self, key: Key) -> str:
        """The setting that gave `key`, or else its line."""
        dotted = ".".join(key)
        for setting, changed in self._theirs.items():
            if f"{dotted}.".startswith(f"{changed}."):
                return f"--set {setting}"
        return f"{self.label}:{self._document.line(list(key))}"

    def find(self, location: list[str]) -> tuple[str, str]:
        """The config's key that a key of the schedule comes from, and its place."""
        parts = [*location]
        while parts and ".".join(parts) not in self.origins:
            parts.pop()
        key = self.origins[".".join(parts)] if parts else tuple(location)
        return ".".join(key), self.place(key)

    def note(self, key: Key, text: str) -> None:
        """Say what became of a key."""
        self.notes.append(Note(self.place(key), ".".join(key), text))

    def settled(self, native: str) -> bool:
        """Whether a setting decides about a key of the schedule, whatever the config says."""
        return any(f"{native}.".startswith(f"{key}.") or key.startswith(f"{native}.") for key in self._ours)

    def refusal(self, key: Key, message: str, hint: str = HINT) -> ScheduleError:
        """The error to raise about a key."""
        return ScheduleError(f"'{'.'.join(key)[:200]}': {message[:500]}", at=self.place(key), hint=hint)

    def drop(self, name: str, section: Section) -> None:
        """Note the keys that the section does not have; the reference drops them, too.

        Raises:
            ScheduleError: it was set by hand just now.
        """
        known = list(type(section).model_fields)
        for extra in section.model_extra or {}:
            self.unknown((name, extra), f"unknown key{nearest(extra, known)}")

    def unknown(self, key: Key, text: str) -> None:
        """Note a key that nobody reads, or refuse it where it comes from the command line."""
        if self.place(key).startswith("--set "):
            raise self.refusal(key, text)
        self.note(key, f"{text}{'' if text.endswith('?') else ';'} not taken")

    def _refuse_mixture(self) -> None:
        for key in map(str, self._document.content):
            if key in NATIVE:
                theirs = next(section for section in SECTIONS if section in self._document.content)
                raise self.refusal(
                    (key,),
                    f"a section of pqc's own schedules, in a file that has the reference's '{theirs}'",
                    hint="write the whole file in one of the two forms; `pqc schedule convert` makes pqc's of it",
                )
            if key not in SECTIONS and key not in WORDS:
                self.unknown((key,), f"unknown section{nearest(key, SECTIONS)}")
