"""`pqc schedule`: look at schedules, check them, and convert the reference library's config files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pqc import files, tables
from pqc.cli_options import PATH, Group, settings_option


@click.group(cls=Group)
def schedule() -> None:
    """Show, check or convert a schedule, pqc's own or a config file of PQuantML.

    \b
    Examples:
      pqc schedule show cs
      pqc schedule check mine.yaml config_cs.yaml
      pqc schedule convert config_cs.yaml -o mine.yaml
    """


@schedule.command()
@click.argument("name_or_file")
@settings_option
@click.option("--json", "as_json", is_flag=True, help="Print schedule, epochs and notes as one JSON document.")
@click.pass_obj
def show(flags: dict[str, Any], /, name_or_file: str, settings: dict[str, str], as_json: bool) -> None:
    """Print a schedule with all defaults, and what happens in which epochs.

    The schedule goes to standard output as YAML, the epochs and the notes to standard error.

    \b
    Examples:
      pqc schedule show cs-demo
      pqc schedule show config_cs.yaml --set phases.training.epochs=20 --json
    """
    from pqc.workflows import schedules

    view = schedules.show(name_or_file, settings)
    if as_json:
        click.echo(json.dumps(view.record(), indent=2))
        return
    click.echo(schedules.to_yaml(view.content), nl=False)
    if not flags["quiet"]:
        tables.say_notes(view.notes)
        tables.say_epochs(view.epochs)


@schedule.command()
@click.argument("names_or_files", nargs=-1, required=True)
@settings_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def check(context: click.Context, names_or_files: tuple[str, ...], settings: dict[str, str], as_json: bool) -> None:
    """Read each schedule and print ok or what is wrong; exits with 1 if something is.

    \b
    Examples:
      pqc schedule check mine.yaml
      pqc schedule check configs/*.yaml --json
    """
    from pqc.workflows import schedules

    found = [schedules.check(name, settings) for name in names_or_files]
    if as_json:
        click.echo(json.dumps([one.record() for one in found], indent=2))
    for one in () if as_json else found:
        if one.error is None:
            click.echo(f"{one.file}: ok")
        else:
            click.echo(f"pqc: {one.error.label}: {one.error}", err=True)
        if not context.obj["quiet"]:
            tables.say_notes(one.notes)
    context.exit(0 if all(one.error is None for one in found) else 1)


@schedule.command()
@click.argument("name_or_file")
@settings_option
@click.option("-o", "--out", type=PATH, help="The file to write; standard output without it.")
def convert(name_or_file: str, settings: dict[str, str], out: Path | None) -> None:
    """Write a config file of PQuantML in pqc's own form, with notes on what is not the same.

    \b
    Examples:
      pqc schedule convert config_cs.yaml
      pqc schedule convert config_cs.yaml -o mine.yaml --set training.batch=1024
    """
    from pqc.workflows import schedules

    text = schedules.convert(name_or_file, settings)
    if out is None:
        click.echo(text, nl=False)
        return
    files.write_text(out, text)
    click.echo(out)
