"""Fixed point with integer and fractional bits as tensors: every rounding and overflow, bits that can be trained."""

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import GRADIENT, QUANTIZER, Operator

ROUNDINGS = ("TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF")
OVERFLOWS = ("SAT", "SAT_SYM", "WRAP", "WRAP_SM")
NO_OVERFLOW = "NONE"
"""What a training step takes instead of wrapping: numbers as large as they come."""


@script(QUANTIZER, default_opset=op)
def Rounded(v: FLOAT, rounding: str = "RND_CONV") -> FLOAT:
    """The integer next to v. RND_CONV takes ties to even, RND up, RND_INF away from zero; TRN is the floor.

    A fraction is compared with one half rather than half added: v + 0.5 may round.
    """
    mode = op.Constant(value_string=rounding)
    if mode == "TRN":
        q = op.Floor(v)
    else:
        if mode == "RND":
            q = op.Floor(v) + op.CastLike(v - op.Floor(v) >= 0.5, v)
        else:
            if mode == "RND_MIN_INF":
                q = op.Ceil(v) - op.CastLike(op.Ceil(v) - v >= 0.5, v)
            else:
                m = op.Abs(v)
                if mode == "TRN_ZERO":
                    q = op.Sign(v) * op.Floor(m)
                else:
                    if mode == "RND_ZERO":
                        q = op.Sign(v) * (op.Ceil(m) - op.CastLike(op.Ceil(m) - m >= 0.5, m))
                    else:
                        if mode == "RND_INF":
                            q = op.Sign(v) * (op.Floor(m) + op.CastLike(m - op.Floor(m) >= 0.5, m))
                        else:
                            q = op.Round(v)
    return q


@script(QUANTIZER, default_opset=op)
def FixedQuant(
    x: FLOAT,
    i: FLOAT,
    f: FLOAT,
    signed: int = 1,
    rounding: str = "RND_CONV",
    overflow: str = "SAT",
) -> FLOAT:
    """Round x to the grid 2^-f and keep it in the range of i integer bits; i and f broadcast to x.

    i and f are rounded themselves, and i counts no less than -f. SAT keeps to [-k 2^i, 2^i - 2^-f], SAT_SYM leaves out
    the lowest value, WRAP drops high bits, WRAP_SM turns back at both ends as AP_WRAP_SM does, and needs a sign. What
    wraps loses a whole number of periods, the nearest, which float32 computes without error. An infinity saturates, and
    is no number once it wraps, as is a finite x whose x 2^f is beyond float32.
    Where i + f is not above zero there are no bits, and the result is zero: a sign alone would be -2^-f or 0, which
    QONNX has no word for. NONE rounds only, whatever i is.
    """
    k = op.CastLike(op.Constant(value_int=signed), x)
    fraction = op.Round(f)
    integer = op.Max(op.Round(i), -fraction)
    step = op.Pow(2.0, -fraction)
    bound = op.Pow(2.0, integer)
    largest = bound - step
    mode = op.Constant(value_string=overflow)
    if mode == "SAT":
        y = Rounded(op.Min(op.Max(x, -k * bound), largest) / step, rounding=rounding) * step
    else:
        if mode == "SAT_SYM":
            y = Rounded(op.Min(op.Max(x, -k * largest), largest) / step, rounding=rounding) * step
        else:
            q = Rounded(x / step, rounding=rounding)
            levels = bound / step
            if mode == "WRAP":
                period = levels * (1.0 + k)
                turned = q - period * op.Round(q / period)
                high = op.Where(turned >= levels, turned - period, turned)
                wrapped = op.Where(turned < -k * levels, turned + period, high)
            else:
                if mode == "WRAP_SM":
                    period = 4.0 * levels
                    turned = q - period * op.Round(q / period)
                    high = op.Where(turned >= levels, 2.0 * levels - turned - 1.0, turned)
                    wrapped = op.Where(turned < -levels, -2.0 * levels - turned - 1.0, high)
                else:
                    wrapped = op.Identity(q)
            y = wrapped * step
    if mode == "NONE":
        result = op.Identity(y)
    else:
        result = y * op.CastLike(op.Round(i) + fraction > 0.0, x)
    return result


@script(QUANTIZER, default_opset=op)
def Shared(gradient: FLOAT, parameter: FLOAT) -> FLOAT:
    """The sum of `gradient` over the axes along which `parameter`, of the same rank, has length one."""
    axes = op.Squeeze(op.NonZero(op.Equal(op.Shape(parameter), 1)), op.Constant(value_ints=[0]))
    return op.ReduceSum(gradient, axes, keepdims=1, noop_with_empty_axes=1)


@script(GRADIENT, default_opset=op)
def FixedQuantGrad(
    dy: FLOAT,
    x: FLOAT,
    i: FLOAT,
    f: FLOAT,
    signed: int = 1,
    rounding: str = "RND_CONV",
    overflow: str = "SAT",
):
    """Rounding passes dy straight through; x beyond a bound gives its gradient to the bits that set the bound.

    Inside, bounds included: dx = dy, df = ln 2 (x - y) dy, di = 0. Above: dx = 0, df = ln 2 2^-f dy, di = ln 2 2^i dy.
    Below: di = -k ln 2 2^i dy, and where the range is symmetric df = -k ln 2 2^-f dy. Without saturation all is inside,
    but WRAP_SM follows its triangle wave. With D = 2^(i+1) and q the rounded x, y = q - 2 n D on the way up, where
    di = -2 n ln 2 D dy; and y = (2 n + s) D - 2^-f - q on the way down, where s is 1 at the upper end and -1 at the
    lower, and dx = -dy, df = ln 2 (2^-f - (x - q)) dy, di = (2 n + s) ln 2 D dy.
    """
    k = op.CastLike(op.Constant(value_int=signed), x)
    ln2 = op.Constant(value_float=0.6931471805599453)
    fraction = op.Round(f)
    integer = op.Max(op.Round(i), -fraction)
    step = op.Pow(2.0, -fraction)
    bound = op.Pow(2.0, integer)
    largest = bound - step
    mode = op.Constant(value_string=overflow)
    saturates = op.Or(mode == "SAT", mode == "SAT_SYM")
    if saturates:
        symmetric = k * op.CastLike(mode == "SAT_SYM", x)
        least = symmetric * step - k * bound
        above = op.CastLike(x > largest, x)
        below = op.CastLike(x < least, x)
        clipped = op.Min(op.Max(x, least), largest)
        residue = clipped - Rounded(clipped / step, rounding=rounding) * step
        dx = dy * (1.0 - above - below)
        df = Shared(dy * ln2 * (residue + step * (above - symmetric * below)), f)
        di = Shared(dy * ln2 * bound * (above - k * below), i)
    else:
        q = Rounded(x / step, rounding=rounding) * step
        if mode == "WRAP_SM":
            n = op.Round(q / (4.0 * bound))
            place = q / bound - 4.0 * n
            end = op.CastLike(place >= 1.0, x) - op.CastLike(place < -1.0, x)
            back = op.Abs(end)
            way = 1.0 - 2.0 * back
            dx = dy * way
            df = Shared(dy * ln2 * (way * (x - q) + back * step), f)
            di = Shared(dy * ln2 * 2.0 * bound * (end - 2.0 * n * way), i)
        else:
            dx = op.Identity(dy)
            df = Shared(dy * ln2 * (x - q), f)
            di = 0.0 * i
    return dx, di, df


@script(QUANTIZER, default_opset=op)
def NeededBits(x: FLOAT, i: FLOAT, f: FLOAT, decay: float = 0.01, signed: int = 1, overflow: str = "SAT") -> FLOAT:
    """The integer bits that x needs once it is rounded half to even to the grid 2^-f, or i - decay if that is more.

    The largest of x counts along the axes where i has length one. Sums of powers of two are compared, not logarithms,
    so that an exact power of two gets what it needs and no more.
    """
    k = op.CastLike(op.Constant(value_int=signed), x)
    step = op.Pow(2.0, -op.Round(f))
    q = op.Round(x / step) * step
    mode = op.Constant(value_string=overflow)
    lowest = op.CastLike(mode == "SAT_SYM", x) * step - q
    reach = op.Max(q + step, k * lowest, step)
    axes = op.Squeeze(op.NonZero(op.Equal(op.Shape(i), 1)), op.Constant(value_ints=[0]))
    largest = op.ReduceMax(reach, axes, keepdims=1, noop_with_empty_axes=1)
    near = op.Round(op.Log(largest) * 1.4426950408889634)
    needed = near + op.CastLike(largest > op.Pow(2.0, near), x)
    return op.Clip(op.Max(i - op.Constant(value_float=decay), needed), -23.0, 23.0)


NEEDED_BITS = Operator(NeededBits)
FIXED_QUANT = Operator(
    FixedQuant,
    FixedQuantGrad,
    arguments=("GO(0)", "I(0)", "I(1)", "I(2)"),
    results=("GI(0)", "GI(1)", "GI(2)"),
    helpers=(Rounded, Shared),
)
