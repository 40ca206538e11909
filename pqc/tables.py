"""Tables and sentences for a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; what the caller has closed is None."""
    return stream is not None and stream.isatty()


ERRORS = Console(stderr=True, soft_wrap=True)
# Where there is no terminal, tables are as wide as their words.
OUTPUT = Console(width=None if _is_terminal(sys.stdout) else 200)
WIDE = Console(stderr=True, width=None if _is_terminal(sys.stderr) else 200)


def say_steps(steps: list[Any]) -> None:
    """What each pass did, on standard error."""
    table = Table("pass", "changed", "ms", "difference")
    for step in steps:
        difference = "" if step.difference is None else f"{step.difference:.3g}"
        table.add_row(Text(step.text), str(step.changed), f"{1000 * step.seconds:.1f}", difference)
    ERRORS.print(table)


def layer_table(layers: list[dict[str, Any]]) -> None:
    """The layers of a model, on standard output."""
    table = Table("layer", "operator", "shape", "nonzero", "weight bits", "bias bits", "input bits", "EBOPs")
    for one in layers:
        shape = "x".join(str(dim) for dim in one["shape"])
        nonzero = f"{one['nonzero']}/{one['weights']}"
        bits = [number(one[f"bits_{what}"]) for what in ("weight", "bias", "input")]
        table.add_row(Text(one["name"]), one["operator"], shape, nonzero, *bits, number(one["ebops"]))
    OUTPUT.print(table)


def ebops_table(found: dict[str, Any]) -> None:
    """The bit operations of a model by node, on standard output."""
    table = Table("node", "operator", "products", "additions", "EBOPs")
    for one in [*found["nodes"], {"name": "total", "operator": "", **found["total"]}]:
        counts = [number(one[what]) for what in ("products", "additions", "ebops")]
        table.add_row(Text(one["name"]), one["operator"], *counts)
    OUTPUT.print(table)
    OUTPUT.print(Text(f"convention: {found['convention']}"))
    if found["uncounted"]:
        OUTPUT.print(Text(f"not counted: {', '.join(found['uncounted'])}"))


def number(value: float) -> str:
    """A number with its thousands marked: to two digits, unless it is a whole one."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def say_precisions(result: dict[str, Any]) -> None:
    """The derived types, on standard error."""
    table = Table("layer", "tensor", "type")
    for one in result["precisions"]:
        table.add_row(Text(str(one["layer"])), str(one["tensor"]), Text(str(one["type"])))
    ERRORS.print(table)


def say_notes(notes: list[Any]) -> None:
    """What a user should know although nothing is wrong, on standard error."""
    for note in notes:
        ERRORS.print(Text(f"note: {note}"))


def say_missing(findings: list[Any]) -> None:
    """Where a model computes on numbers that are on no grid, on standard error."""
    if not findings:
        ERRORS.print(Text("every operation computes on a grid"))
        return
    table = Table()
    for title in ("node", "input", "missing", "what to do"):
        table.add_column(title, overflow="fold")
    for one in findings:
        row = (f"{one.node} {one.operator}".strip(), one.input, one.missing, one.action or "-")
        table.add_row(*(Text(part) for part in row))
    ERRORS.print(table)


def say_epochs(stretches: list[Any]) -> None:
    """What happens in which epochs of a schedule, on standard error."""
    table = Table(show_lines=True)
    for title in ("epochs", "phase", "quantizers", "masks", "learning rate", "controls", "what else"):
        table.add_column(title, overflow="fold")
    for one in stretches:
        rounds = sum(other.phase == one.phase for other in stretches)
        phase = f"{one.phase} {one.round + 1} of {rounds}" if rounds > 1 else one.phase
        epochs = f"{one.first}-{one.last}" if one.first < one.last else str(one.last)
        rate = _change(one.learning_rate)
        if one.last < one.first:
            epochs, rate = "-", "-"
        controls = "\n".join(f"{name} {_change(ends)}" for name, ends in one.controls.items())
        events = Text("\n".join(one.events))
        table.add_row(epochs, phase, "on" if one.quantizers else "off", one.masks, rate, controls, events)
    WIDE.print(table)


def _change(ends: tuple[float, float]) -> str:
    first, last = (f"{end:.4g}" for end in ends)
    return first if first == last else f"{first} → {last}"


def say_fit(found: dict[str, Any]) -> None:
    """What a search found, on standard error."""
    table = Table("layer", "bits", "k,i,f", "not zero")
    for one in found["layers"]:
        table.add_row(
            Text(one["layer"]), str(one["bits"]), one["type"] or "float", f"{one['nonzero']}/{one['weights']}"
        )
    ERRORS.print(table)
    ((measure, bound),) = found["goal"].items()
    shares = f"{100 * found['rate']:.2f} % of the float model's bits, {100 * found['keep']:.2f} % of its weights"
    ERRORS.print(f"{measure} {found[measure]:.5g} of {bound:g}: {shares}, {found['bits']:.2f} bits a weight")


def say_summary(summary: dict[str, Any], out: Path) -> None:
    """What a run found, on standard error."""
    names = list(summary["float"])
    table = Table("model", *names)
    for key in ("float", "trained", "clean", "hls"):
        found = [(summary.get(key) or {}).get(name) for name in names]
        if None not in found:
            table.add_row(key, *(f"{number:.4f}" for number in found))
    ERRORS.print(table)
    ERRORS.print(f"{100 * summary['keep_ratio']:.2f} % of the weights remain, {number(summary['ebops'])} EBOPs")
    same = "equal bit for bit" if summary["clean_equals_trained"] else "DIFFERENT"
    ERRORS.print(f"trained and clean model: {same}")
    hls = summary.get("hls") or {}
    if "mismatches" in hls:
        ERRORS.print(f"{hls['mismatches']} mismatches in {hls['samples']} samples")
    if "skipped" in hls:
        ERRORS.print(Text(f"no firmware: {hls['skipped']}"))
    ERRORS.print(Text(f"report: {out / 'report.html'}   ({summary['seconds']:.0f} s)"))
