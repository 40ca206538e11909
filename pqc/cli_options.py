"""What several verbs of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path; an empty one, as a shell makes of an unset variable, is not the working directory."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


PATH = _Path(path_type=Path)
Verb = Callable[..., Any]


class Group(click.Group):
    """Lists the verbs in the order of the chain."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    settings = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"expected key=value and got '{value}'")
        settings[key] = text
    return settings


def settings_option(verb: Verb) -> Verb:
    """`--set KEY=VALUE`, any number of times."""
    decorate = click.option(
        "--set", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE", help="Override the schedule."
    )
    return decorate(verb)


def track_option(verb: Verb) -> Verb:
    """`--track [URI]`: None without it, empty where no URI follows."""
    decorate = click.option(
        "--track", is_flag=False, flag_value="", metavar="[URI]", help="Send the run to MLflow: a server or a folder."
    )
    return decorate(verb)
