"""Curves and options: the two small languages inside schedules and pipelines."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqc import curves, options
from pqc.errors import PqcError
from pqc.fixed_point import FixedPoint

LENGTH = 11


# Curves: values


@pytest.mark.parametrize("text", [0.25, "0.25", " 2.5e-1 ", "constant(0.25)", " constant ( 0.25 ) "])
def test_a_constant_is_the_same_everywhere(text: str | float) -> None:
    curve = curves.parse(text)
    assert [curve(n, LENGTH) for n in range(LENGTH)] == [0.25] * LENGTH


@pytest.mark.parametrize(
    ("text", "middle"),
    [("linear(1, 3)", 2.0), ("exp(1, 100)", 10.0), ("cosine(3, 1)", 2.0), ("warmup_cosine(3, 1, 0)", 2.0)],
)
def test_a_curve_meets_its_ends_and_its_middle(text: str, middle: float) -> None:
    curve = curves.parse(text)
    start, end = (float(part) for part in text[text.index("(") + 1 : -1].split(",")[:2])
    found = [curve(n, LENGTH) for n in (0, LENGTH // 2, LENGTH - 1)]
    assert found == pytest.approx([start, middle, end], rel=1e-12)


def test_step_multiplies_at_each_fraction() -> None:
    curve = curves.parse("step(8, 0.5, 0.25, 0.75)")
    assert [curve(n, 8) for n in range(8)] == [8, 8, 4, 4, 4, 4, 2, 2]


def test_restarts_fall_in_each_stretch() -> None:
    curve = curves.parse("restarts(4, 1, 3)")
    falling = curves.parse("cosine(4, 1)")
    assert [curve(n, 12) for n in range(12)] == pytest.approx([falling(n % 4, 4) for n in range(12)])
    assert [curve(n, 2) for n in range(2)] == [4, 4], "shorter than a step each"


def test_piecewise_goes_through_its_points() -> None:
    curve = curves.parse("piecewise(0, 1, 0.5, 3, 0.75, 3, 1, 0)")
    assert [curve(n, 9) for n in range(9)] == [1, 1.5, 2, 2.5, 3, 3, 3, 1.5, 0]
    curve = curves.parse("piecewise_exp(0.25, 1e-6, 0.75, 1e-4)")
    assert [curve(n, 9) for n in range(9)] == pytest.approx([1e-6] * 3 + [10**-5.5, 1e-5, 10**-4.5] + [1e-4] * 3)
    assert curves.parse("piecewise(0, 7)")(3, 9) == 7


def test_stairs_have_equal_steps_a_constant_factor_apart() -> None:
    curve = curves.parse("stairs(1, 8, 4)")
    assert [curve(n, 8) for n in range(9)] == pytest.approx([1, 1, 2, 2, 4, 4, 8, 8, 8])
    assert [curve(n, 6) for n in range(6)] == pytest.approx([1, 1, 2, 4, 4, 8])
    assert curves.parse("stairs(3, 5, 1)")(7, 9) == 3


def test_warmup_rises_in_a_line_to_its_start() -> None:
    curve = curves.parse("warmup_cosine(4, 0, 0.4)")
    assert [curve(n, 10) for n in range(4)] == pytest.approx([1, 2, 3, curves.parse("cosine(4, 0)")(3, 10)])


@pytest.mark.parametrize("name", ["linear", "exp", "cosine"])
def test_a_single_epoch_is_at_the_start(name: str) -> None:
    assert curves.parse(f"{name}(2, 5)")(0, 1) == 2


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 500), st.sampled_from(["linear", "exp", "cosine"]))
def test_a_curve_stays_between_its_ends_and_never_turns(start: float, end: float, length: int, name: str) -> None:
    curve = curves.parse(f"{name}({start!r}, {end!r})")
    values = [curve(n, length) for n in range(length)]
    low, high = min(start, end), max(start, end)
    assert all(low * (1 - 1e-9) <= value <= high * (1 + 1e-9) for value in values)
    sign = 1 if end >= start else -1
    slack = 1e-9 * high
    assert all(sign * (b - a) >= -slack for a, b in itertools.pairwise(values))


# Curves: errors


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "exp",
        "exp(",
        "exp(1",
        "exp 1, 2",
        "exp()",
        "exp(1)",
        "exp(1, 2, 3)",
        "restarts(2, 1, 0)",
        "restarts(2, 1, 1.5)",
        "piecewise()",
        "piecewise(0, 1, 1)",
        "piecewise(0.5, 1, 0.5, 2)",
        "piecewise(1, 1, 0, 2)",
        "piecewise_exp(0, 0, 1, 2)",
        "stairs(1, 2, 0)",
        "stairs(1, 2, 2.5)",
        "exp(a, b)",
        "exp(1; 2)",
        "exp(0, 2)",
        "exp(-1, 2)",
        "exp(1e-300, 1e300)",
        "linear(nan, 1)",
        "constant(inf)",
        "step(1)",
        "exp(exp(1, 2), 3)",
        "exp(1, 2)exp(1, 2)",
    ],
)
def test_what_is_no_curve_is_refused(text: str) -> None:
    with pytest.raises(PqcError) as caught:
        curves.parse(text)
    assert str(caught.value) == (f"cannot read the curve '{text}'\nhint: write a number or, for example, exp(1, 200)")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "-inf", "1e400"])
def test_a_number_that_is_not_finite_is_no_curve(value: str | float) -> None:
    with pytest.raises(PqcError):
        curves.parse(value)


def test_a_misspelt_curve_names_the_nearest() -> None:
    with pytest.raises(PqcError) as caught:
        curves.parse("cosin(1, 0)")
    assert str(caught.value) == (
        "no curve 'cosin'; did you mean 'cosine'?\nhint: curves are: constant, linear, exp, stairs, cosine, restarts, step, warmup_cosine, piecewise, piecewise_exp, ramp, cubic, autosparse"
    )


# Options


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("-2.5", float, -2.5),
        ("word", str, "word"),
        ("true", bool, True),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("1,0,7", FixedPoint, FixedPoint(1, 0, 7)),
        ("1,0,7", FixedPoint | None, FixedPoint(1, 0, 7)),
        ("none", FixedPoint | None, None),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("1,2", tuple[int, ...], (1, 2)),
        ("", tuple[str, ...], ()),
        ("a=1,b=x", dict[str, str], {"a": "1", "b": "x"}),
        ("", dict[str, str], {}),
    ],
)
def test_read_and_write_are_inverse(text: str, kind: object, value: object) -> None:
    assert options.read(text, kind) == value
    assert options.write(value) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("yes", bool),
        ("1.5", int),
        ("", int),
        ("none", int),
        ("1,0", FixedPoint),
        ("1,0,7,1", FixedPoint),
        ("1,0,x", FixedPoint),
        ("2,0,7", FixedPoint),
        ("1,0,99", FixedPoint),
        ("a", dict[str, str]),
        ("x", list[int]),
    ],
)
def test_read_refuses_what_does_not_fit(text: str, kind: object) -> None:
    with pytest.raises(ValueError):
        options.read(text, kind)


@pytest.mark.parametrize("value", ["plain", "two words", "a{b}", "tab\there", "x=1,y=2"])
def test_quoted_text_stays_one_word(value: str) -> None:
    (_, word), (_, other) = options.split_words(f"key={options.quote(value)} other=1")
    assert options.unquote(word.removeprefix("key=")) == value
    assert other == "other=1"


@pytest.mark.parametrize("value", ['a " b', 'x"', '"'])
def test_a_double_quote_survives_quoting(value: str) -> None:
    (_, word), *rest = options.split_words(f"key={options.quote(value)} other=1")
    assert options.unquote(word.removeprefix("key=")) == value
    assert [text for _, text in rest] == ["other=1"]


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert options.nearest("zzz", ["batch", "seed"]) == ""
    assert options.nearest("bach", ["batch", "seed"]) == "; did you mean 'batch'?"
