"""Einsum as transpositions, products of matrices and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.writer import Writer


@dataclass(frozen=True)
class Term:
    """A value and one letter for each of its axes."""

    value: ir.Value
    letters: str


def einsum(main: ir.Graph, node: ir.Node) -> int:
    """Operands are joined from left to right; a letter is summed over as soon as nothing else has it."""
    write = Writer(main, node)
    terms, result = _terms(write)
    joined = _summed(write, terms[0], {*result, *(letter for term in terms[1:] for letter in term.letters)})
    for place, term in enumerate(terms[1:], start=2):
        kept = {*result, *(letter for later in terms[place:] for letter in later.letters)}
        left = _summed(write, joined, kept | set(term.letters))
        right = _summed(write, term, kept | set(joined.letters))
        joined = _product(write, left, right, kept)
    joined = _summed(write, joined, set(result))
    return write.finish(_ordered(write, joined, result).value)


def _terms(write: Writer) -> tuple[list[Term], str]:
    """The operands without repeated letters, and the letters of the result; an ellipsis becomes letters of its own."""
    equation = write.origin.attributes.get_string("equation").replace(" ", "")
    texts, arrow, result = equation.partition("->")
    operands = texts.split(",")
    free = [chr(code) for code in range(0x3B1, 0x3B1 + 16)]  # Greek, which no equation uses
    spread = 0
    expanded = []
    for index, text in enumerate(operands):
        count = write.rank(index) - len(text.replace("...", "")) if "..." in text else 0
        spread = max(spread, count)
        expanded.append(text.replace("...", "".join(free[len(free) - count :])))
    batch = "".join(free[len(free) - spread :])
    if not arrow:
        letters = sorted({*texts} - {".", ","})
        result = "..." + "".join(letter for letter in letters if texts.count(letter) == 1)
    result = result.replace("...", batch)
    if not set(batch) <= set(result):
        raise write.refused("that sums over its ellipsis is not taken")
    return [_diagonal(write, index, letters) for index, letters in enumerate(expanded)], result


def _diagonal(write: Writer, index: int, letters: str) -> Term:
    """Pick the diagonal of axes that share a letter: the product with a unit matrix, summed over the second axis."""
    value = graph.operand(write.origin, index)
    lengths = {letter: place for place, letter in enumerate(letters)}
    while len(set(letters)) < len(letters):
        second = next(place for place, letter in enumerate(letters) if letter in letters[:place])
        first = letters.index(letters[second])
        size = write.length(lengths[letters[second]], index)
        shape = [size if place in (first, second) else 1 for place in range(len(letters))]
        unit = write.constant(np.eye(size, dtype=np.float32).reshape(shape), "unit")
        axes = write.integers([second], "axes")
        value = write.add("ReduceSum", [write.add("Mul", [value, unit]), axes], keepdims=0)
        letters = letters[:second] + letters[second + 1 :]
    return Term(value, letters)


def _summed(write: Writer, term: Term, kept: set[str]) -> Term:
    """Sum over the letters that are not kept."""
    axes = [place for place, letter in enumerate(term.letters) if letter not in kept]
    if not axes:
        return term
    value = write.add("ReduceSum", [term.value, write.integers(axes, "axes")], keepdims=0)
    return Term(value, "".join(letter for letter in term.letters if letter in kept))


def _ordered(write: Writer, term: Term, letters: str) -> Term:
    """Transpose to these letters; those that the term lacks become axes of length one."""
    present = "".join(letter for letter in letters if letter in term.letters)
    value = term.value
    if present != term.letters:
        value = write.add("Transpose", [value], perm=[term.letters.index(letter) for letter in present])
    missing = [place for place, letter in enumerate(letters) if letter not in term.letters]
    if missing:
        value = write.add("Unsqueeze", [value, write.integers(missing, "axes")])
    return Term(value, letters)


def _product(write: Writer, left: Term, right: Term, kept: set[str]) -> Term:
    """A product of matrices [batch, rows, summed] and [batch, summed, columns].

    The last letter that only one side has makes rows or columns; its others are batch axes of length one on the other
    side. `?` is an axis of length one.
    """
    shared = [letter for letter in left.letters if letter in right.letters]
    inner = "".join(letter for letter in shared if letter not in kept)
    rows = [letter for letter in left.letters if letter not in right.letters]
    columns = [letter for letter in right.letters if letter not in left.letters]
    batch = "".join([letter for letter in shared if letter in kept] + rows[:-1] + columns[:-1])
    row, column = "".join(rows[-1:]) or "?", "".join(columns[-1:]) or "?"
    a = _matrix(write, left, batch, row, inner)
    b = write.add("Transpose", [_matrix(write, right, batch, column, inner)], perm=_swapped(len(batch) + 2))
    product = write.add("MatMul", [a, b])
    letters = batch + row + column
    dummies = [place for place, letter in enumerate(letters) if letter == "?"]
    if dummies:
        product = write.add("Squeeze", [product, write.integers(dummies, "axes")])
    return Term(product, letters.replace("?", ""))


def _matrix(write: Writer, term: Term, batch: str, row: str, inner: str) -> ir.Value:
    """[batch, row, all that is summed over]"""
    value = _ordered(write, term, batch + row + (inner or "!")).value
    if len(inner) > 1:
        shape = write.integers([0] * (len(batch) + 1) + [-1], "joined")
        value = write.add("Reshape", [value, shape])
    return value


def _swapped(rank: int) -> Sequence[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
