"""YAML that somebody else wrote: read without trust, with the line of every key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from pqc.errors import ScheduleError

HINT = "docs/schedules.md shows a whole schedule"
MAX_DEPTH = 50
_OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
# What PyYAML lets through: numbers and dates that Python refuses, and nesting beyond its stack.
_ERRORS = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Note:
    """What became of a key that was not taken as it stands.

    Args:
        at: the file and the line, or the setting.
        key: the dotted key.
        text: what became of it.
    """

    at: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.at}: {self.key}: {self.text}"


class Document:
    """A mapping and where its keys stand.

    Args:
        text: the YAML.
        label: how errors name it.

    Raises:
        ScheduleError: not YAML, not a mapping, a key twice, or references.
    """

    def __init__(self, text: str, label: str) -> None:
        self.label = label
        self.notes: list[Note] = []
        try:
            _check_tokens(text, label)
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.content: Any = yaml.safe_load(text)
        except _ERRORS as error:
            raise ScheduleError(f"not YAML: {_reason(error)}", at=self._mark(error), hint=HINT) from error
        if not isinstance(self.content, dict):
            raise ScheduleError("a schedule is a mapping of sections", at=label, hint=HINT)
        self._refuse_twins(self._root)

    def line(self, location: list[str]) -> int:
        """The 1-based line of the deepest part of `location` that the file has."""
        node: Any = self._root
        line = node.start_mark.line
        for part in location:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            pair = next(((key, value) for key, value in pairs if key.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        return int(line) + 1

    def find(self, location: list[str]) -> tuple[str, str]:
        """The dotted key at `location`, and its place: file and line."""
        return ".".join(location), f"{self.label}:{self.line(location)}"

    def _refuse_twins(self, node: Any) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                place = f"{self.label}:{key.start_mark.line + 1}"
                raise ScheduleError(f"the key '{key.value}' is given twice", at=place, hint="keep one of them")
            seen.add(str(key.value))
            self._refuse_twins(value)

    def _mark(self, error: Exception) -> str:
        mark = getattr(error, "problem_mark", None)
        return f"{self.label}:{mark.line + 1}" if mark is not None else self.label


def value(text: str, key: str) -> Any:
    """The value of one `--set key=text`.

    Raises:
        ScheduleError: not YAML.
    """
    try:
        _check_tokens(text, f"--set {key}", lines=False)
        return yaml.safe_load(text)
    except _ERRORS as error:
        raise ScheduleError(
            f"not YAML: {_reason(error)}", at=f"--set {key}", hint="quote text for the shell"
        ) from error


def _check_tokens(text: str, label: str, *, lines: bool = True) -> None:
    """Refuse references, a few of which can stand for more than memory holds, and deep nesting, which reads for hours.

    Raises:
        ScheduleError: names the line.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        place = f"{label}:{token.start_mark.line + 1}" if lines else label
        if depth > MAX_DEPTH:
            raise ScheduleError("not YAML: nested too deeply", at=place, hint=HINT)
        if isinstance(token, yaml.AliasToken):
            raise ScheduleError("references (*name) are not taken", at=place, hint="write the value out")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "problem", None) or str(error).splitlines()[0])[:200]
