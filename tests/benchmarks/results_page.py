"""The blocks of documentation that commands write."""

from __future__ import annotations

from pathlib import Path

from pqc import files

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def write(begin: str, end: str, text: str, page: Path = PAGE) -> None:
    """Put `text` between two marks of a page, which stay."""
    before, rest = page.read_text().split(begin)
    files.write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
