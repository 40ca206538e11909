"""Turn values into HTML. Names come from model files, so all that is not markup is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "\N{EN DASH}"
GAP = "\N{NO-BREAK SPACE}"


def plain(value: Any, limit: int = 0) -> str:
    """One line of printable text, its middle left out beyond `limit` characters; 0 is without limit."""
    line = "".join(
        letter if letter.isprintable() or letter == GAP else "\N{REPLACEMENT CHARACTER}" for letter in str(value)
    )
    if not limit or len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}…{line[-tail:]}"


def text(value: Any) -> str:
    """Text for the page: printable and escaped, a dash where there is none."""
    return NOTHING if value is None else html.escape(plain(value))


def number(value: Any) -> float | None:
    """A finite number, or None for all else, so that no page shows NaN."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def real(value: Any, digits: int = 6) -> str:
    """A number to so many significant digits."""
    found = number(value)
    return NOTHING if found is None else _minus(f"{found + 0.0:.{digits}g}")


def count(value: Any) -> str:
    """A whole number with its thousands marked."""
    found = number(value)
    if found is None:
        return NOTHING
    whole = value if isinstance(value, int) else int(found)
    return _minus(f"{whole:,}" if found == whole else f"{found:,.6g}")


def percent(value: Any) -> str:
    """A share as a percentage: two decimals, more where they would all be zeros."""
    found = number(value)
    if found is None:
        return NOTHING
    share = 100 * found
    return _minus(f"{share:.2g}" if 0 < abs(share) < 0.1 else f"{share:.2f}") + f"{GAP}%"


def points(difference: Any) -> str:
    """A difference of two shares in percentage points, with its sign."""
    found = number(difference)
    if found is None:
        return NOTHING
    rounded = round(100 * found, 2)
    return _minus(f"{rounded:+.2f}" if rounded else "0.00") + f"{GAP}points"


def seconds(value: Any) -> str:
    """A duration."""
    return real(value, 3) + (f"{GAP}s" if number(value) is not None else "")


def _minus(line: str) -> str:
    """A typographic minus, but not in an exponent."""
    return f"\N{MINUS SIGN}{line[1:]}" if line.startswith("-") else line


def table(header: Sequence[str], align: str, rows: Iterable[Sequence[Any]], total: Sequence[Any] = ()) -> str:
    """A table of plain values, or nothing without rows.

    Args:
        header: of each column.
        align: a letter a column: `l` text, `c` code, `r` number.
        rows: the cells, escaped here.
        total: a last row in bold.
    """
    body = [_row(row, align) for row in rows]
    if not body:
        return ""
    head = "".join(
        f'<th scope="col" class="{kind}">{text(name)}</th>' for name, kind in zip(header, align, strict=True)
    )
    foot = f"<tfoot>{_row(total, align)}</tfoot>" if total else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(body)
        + f"</tbody>{foot}</table></div>\n"
    )


def _row(cells: Sequence[Any], align: str) -> str:
    columns = "".join(f'<td class="{kind}">{text(cell)}</td>' for cell, kind in zip(cells, align, strict=True))
    return f"<tr>{columns}</tr>"


def paragraph(line: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(line)}</p>\n" if line else ""


def folded(summary: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{text(summary)}</summary>\n{content}</details>\n" if content else ""


def card(label: str, value: str, detail: str = "", kind: str = "") -> str:
    """A headline number.

    Args:
        label: what it is.
        value: the number.
        detail: a line below.
        kind: `good`, `bad` or neither.
    """
    below = f'<div class="detail">{text(detail)}</div>' if detail else ""
    return (
        f'<div class="card {text(kind)}"><div class="label">{text(label)}</div>'
        f'<div class="value">{text(value)}</div>{below}</div>\n'
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page, or nothing where all its parts are empty."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>\n{content}</section>\n" if content else ""
