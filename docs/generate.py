"""Write the reference pages that follow from the code: `make docs`. With --check, only say what is stale."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from pqc import errors
from pqc.cli import cli
from pqc.functions.operator import RANKING
from pqc.method import Method
from pqc.methods import TABLE as METHODS
from pqc.options import spell, write
from pqc.passes import TABLE as PASSES
from pqc.pipeline import unparse

HERE = Path(__file__).parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n"


def docstring(thing: object) -> str:
    """A docstring without its indentation."""
    return inspect.cleandoc(getattr(thing, "__doc__", "") or "")


def cell(thing: object) -> str:
    """The first line of a docstring, fit for a Markdown table."""
    return docstring(thing).splitlines()[0].replace("|", "\\|")


def options_table(kind: type, spelling: Callable[[str], str] = spell) -> list[str]:
    """The fields of a dataclass as a Markdown table."""
    fields = dataclasses.fields(kind)
    if not fields:
        return []
    default = kind()
    rows = [f"| `{spelling(field.name)}` | `{write(getattr(default, field.name)) or '(empty)'}` |" for field in fields]
    return ["", "| option | default |", "|---|---|", *rows]


def passes() -> Iterator[str]:
    """The page of the passes."""
    yield "# Passes\n\nIn the order of the chain. A pipeline is their names and options as text:"
    yield (
        "`"
        + unparse([PASSES["normalize"](), PASSES["insert-quant"](outputs=PASSES["insert-quant"]().weights)])
        + "`.\n"
    )
    yield "*Meaning* says how far a pass may move the outputs; `--verify-each` measures it."
    for name, kind in PASSES.items():
        yield f"\n## {name}\n"
        yield docstring(kind)
        yield "\n".join([f"\nMeaning: {kind.meaning}.", *options_table(kind)])


def methods() -> Iterator[str]:
    """The page of the pruning methods."""
    yield "# Pruning methods\n\nOne file each in `pqc/methods/`."
    for name, kind in METHODS.items():
        yield f"\n## {name}\n"
        yield docstring(kind)
        yield "\n" + docstring(inspect.getmodule(kind))
        yield "\n| function | inputs | what it computes |\n|---|---|---|"
        for operator in kind.operators:
            if operator.key[0] != RANKING.domain:
                inputs = ", ".join(operator.bodies()[0].input)
                yield f"| {operator.key[1]} | {inputs} | {cell(operator.function)} |"
        yield "\n" + controls(kind())
        yield "\n".join(options_table(kind, str))


def controls(method: Method) -> str:
    """The annealed scalars of a method in a sentence."""
    curves = ", ".join(f"`{name}: {curve}`" for name, curve in method.controls().items())
    return f"Controls: {curves}." if curves else "No controls."


def error_reference() -> Iterator[str]:
    """The page of the errors."""
    yield "# Errors\n"
    yield "Every error is one paragraph on standard error: what is wrong and where, then a hint that is an action."
    yield "`-vv` shows the traceback. Exit codes: 0 is well, 1 an error, 2 the command line itself.\n"
    yield "```\n" + docstring(errors).split("\n\n", 1)[1] + "\n```\n"
    yield "| class | printed as | exit code | when |\n|---|---|---|---|"
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.PqcError):
            yield f"| `{name}` | {kind.label} | {kind.exit_code} | {docstring(kind).splitlines()[0]} |"


def commands() -> Iterator[str]:
    """The page of the command line."""
    yield "# Command line\n"
    yield "Standard output is data, standard error is words.\n"
    for title, command in walk("pqc", cli):
        yield f"## {title}\n"
        context = click.Context(command, info_name=title, max_content_width=100, terminal_width=100)
        yield "```\n" + command.get_help(context) + "\n```\n"


def walk(title: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and, depth first, those inside it."""
    yield title, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(f"{title} {name}", inner)


PAGES = {"passes.md": passes, "methods.md": methods, "errors.md": error_reference, "cli.md": commands}


def render() -> dict[Path, str]:
    """Every generated page by path."""
    return {HERE / name: NOTE + "\n".join(page()).rstrip() + "\n" for name, page in PAGES.items()}


def main() -> None:
    """Write the pages, or with --check exit with 1 if one is stale."""
    pages = render()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path, text in pages.items():
            path.write_text(text)
    print("\n".join(f"stale: {path.name}" for path in stale) or "all pages are fresh")
    sys.exit(bool(stale) if "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
