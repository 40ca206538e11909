"""Write the reference pages that follow from the code: `make docs`. With --check, only say what is stale.

The pages of the pruning methods are written by hand; what lies in them between the marks of a block is written here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from operator_table import operator_page

from pqc import errors
from pqc.cli import cli
from pqc.functions.operator import RANKING
from pqc.functions.optimizers import OPTIMIZERS
from pqc.method import Method
from pqc.methods import TABLE as METHODS
from pqc.options import spell, write
from pqc.passes import TABLE as PASSES
from pqc.pipeline import unparse

HERE = Path(__file__).parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n"
BLOCK = re.compile(r"(<!-- (\w+) of (\w+): written by docs/generate.py -->\n).*?(<!-- end -->)", re.DOTALL)
NEW_PAGE = """# {0}

## Keys

<!-- keys of {0}: written by docs/generate.py -->
<!-- end -->

## In the graph

<!-- functions of {0}: written by docs/generate.py -->
<!-- end -->
"""


def docstring(thing: object) -> str:
    """A docstring without its indentation."""
    return inspect.cleandoc(getattr(thing, "__doc__", "") or "")


def cell(thing: object) -> str:
    """The first line of a docstring, fit for a Markdown table."""
    return docstring(thing).splitlines()[0].replace("|", "\\|")


def options_table(kind: type) -> list[str]:
    """The fields of a dataclass as a Markdown table."""
    fields = dataclasses.fields(kind)
    if not fields:
        return []
    default = kind()
    rows = [f"| `{spell(field.name)}` | `{write(getattr(default, field.name)) or '(empty)'}` |" for field in fields]
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


def table_of_methods(_: str) -> Iterator[str]:
    """Every method in a line: its page, what it does, how it comes to a target, what it can prune."""
    yield "| method | what it does | a target of `sparsity` is met | prunes |\n|---|---|---|---|"
    for name, kind in METHODS.items():
        method = kind()
        steered = f"by steering `{method.strength}`, and a cut at the end"
        exact = "by rank" if method.aim(0.5).budget() else steered if method.strength else "by a cut at the end"
        options = {field.name for field in dataclasses.fields(kind)}
        more = ["whole outputs" if method.cuts_outputs else "single weights"]
        more += ["whole outputs or inputs"] if "structure" in options else []
        more += ["N:M patterns"] if "pattern" in options else []
        more += ["blocks of weights, kernel patterns"] if "metric" in options else []
        yield f"| [{name}](methods/{name}.md) | {cell(kind)} | {exact} | {', '.join(more)} |"


def table_of_keys(name: str) -> Iterator[str]:
    """The keys of a method or an optimizer with their defaults and what they do, and a method's controls."""
    kind = METHODS[name] if name in METHODS else OPTIMIZERS[name]
    default, known = kind(), arguments(kind)
    yield "| key | default | what it does |\n|---|---|---|"
    for field in dataclasses.fields(kind):
        yield f"| `{field.name}` | {value(getattr(default, field.name))} | {known[field.name]} |"
    if isinstance(default, Method):
        yield "\n" + controls(default)


def table_of_functions(name: str) -> Iterator[str]:
    """The functions that a method has in the graph."""
    yield "| function | inputs | what it computes |\n|---|---|---|"
    for operator in METHODS[name].operators:
        if operator.key[0] != RANKING.domain:
            inputs = ", ".join(operator.bodies()[0].input)
            yield f"| {operator.key[1]} | {inputs} | {cell(operator.function)} |"


BLOCKS = {"list": table_of_methods, "keys": table_of_keys, "functions": table_of_functions}


def filled(text: str) -> str:
    """A page with its blocks written anew."""

    def block(match: re.Match[str]) -> str:
        first, kind, name, last = match.groups()
        return f"{first}\n" + "\n".join(BLOCKS[kind](name)) + f"\n\n{last}"

    return BLOCK.sub(block, text)


def arguments(kind: type) -> dict[str, str]:
    """What the docstrings of a class and those it is derived from say about each argument, for a Markdown table."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, text = docstring(one).partition("Args:\n")
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(meaning.split()).replace("|", "\\|")
    return found


def value(default: object) -> str:
    """A default as a schedule has it."""
    return f"`{write(default)}`" if write(default) else "none"


def controls(method: Method) -> str:
    """The annealed scalars of a method in a sentence."""
    curves = ", ".join(f"`{name}: {curve}`" for name, curve in method.controls().items())
    return f"Controls, the curves that `controls` in a schedule can change: {curves}." if curves else "No controls."


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


PAGES = {"passes.md": passes, "errors.md": error_reference, "cli.md": commands, "operators.md": operator_page}


def render() -> dict[Path, str]:
    """Every page by path: the generated ones, and those with blocks in them."""
    pages = {HERE / name: NOTE + "\n".join(page()).rstrip() + "\n" for name, page in PAGES.items()}
    written = {HERE / "methods" / f"{name}.md": NEW_PAGE.format(name) for name in METHODS}
    written |= {path: path.read_text() for path in (HERE / "methods.md", *sorted(HERE.glob("methods/*.md")))}
    return pages | {path: filled(text) for path, text in written.items()}


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
