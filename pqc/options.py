"""Options as text: the values in a pipeline, and the nearest name when one is misspelt."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable
from difflib import get_close_matches

from pqc.errors import PassError

NONE = "none"

_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')
_SPECIAL = re.compile(r'[\s{}"\\]')


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def check_options(owner: str, options: Iterable[str], known: list[str]) -> None:
    """Refuse an option that its owner does not have.

    Raises:
        PassError: names the option, the nearest one, and those there are.
    """
    for option in options:
        if option not in known:
            raise PassError(
                f"{owner} has no option '{option}'{nearest(option, known)}",
                hint=f"it has: {', '.join(known) or 'none'}",
            )


def spell(field: str) -> str:
    """`pruning_first` is written `pruning-first`."""
    return field.replace("_", "-")


def read(text: str, kind: object) -> object:
    """The value of type `kind` that `text` writes.

    Raises:
        ValueError: it does not write one.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if text == NONE and type(None) in arguments:
            return None
        return read(text, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        return tuple(read(part, arguments[0]) for part in text.split(",") if part)
    if origin is dict:
        return dict(_pair(part) for part in text.split(",") if part)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if hasattr(kind, "parse"):
        return kind.parse(text)
    if kind in (int, float, str):
        return kind(text)
    raise ValueError(f"cannot be written as text: {kind}")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"expected name=value and got '{text}'")
    return name, value


def split_words(text: str) -> list[tuple[int, str]]:
    """The words of `text` with their positions; spaces inside double quotes do not separate."""
    return [(match.start(), match.group()) for match in _WORD.finditer(text)]


def unquote(text: str) -> str:
    """`text` without the double quotes around it."""
    return str(json.loads(text)) if len(text) > 1 and text[0] == text[-1] == '"' else text


def quote(text: str) -> str:
    """`text` in double quotes where a pipeline's own characters occur in it."""
    return json.dumps(text, ensure_ascii=False) if _SPECIAL.search(text) else text


def write(value: object) -> str:
    """The text that `read` turns back into `value`."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(write(part) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={write(part)}" for name, part in value.items())
    return str(value)


def field_types(options: type) -> dict[str, object]:
    """The types of a dataclass's fields, by field name."""
    hints = typing.get_type_hints(options)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}
