"""Small networks, one for each operator and each of its forms, that training has to go through.

`CASES` holds them by name: what builds the model, and the inputs to run it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from conftest import onnx_model

ROWS, WIDTH = 3, 8


@dataclass(frozen=True)
class Case:
    """A network around one operator.

    Args:
        name: the operator, then what is particular about this form.
        text: nodes from `a`, the result of a trained layer [n, 8], `p`, positive numbers made of it, or `c`, images
            [n, 4, 4, 4], to `s`. `u` are numbers of (-1, 1).
        arrays: the constants that the nodes read.
        bound: by how much a gradient may differ, over the largest of the network.
        fixed: whether the model's batch is a number, which what moves rows needs.
    """

    name: str
    text: str
    arrays: Mapping[str, object] = field(default_factory=dict)
    bound: float = 2e-5
    fixed: bool = False

    def build(self) -> ir.Model:
        """The model: a trained layer with its bias, what the nodes start from, the nodes."""
        words = self.text.replace("(", " ").replace(")", " ").replace(",", " ").split()
        start = "".join(text for name, text in STARTS.items() if name in words)
        random = np.random.default_rng(8)
        image = "c" in words
        batch = ROWS if self.fixed else "n"
        nodes = f"h = MatMul (x, w) a = Add (h, b) {start} {self.text} y = Mul (s, s)"
        return onnx_model(
            f"(float[{batch},{WIDTH}] x) => (y) {{ {nodes} }}",
            w=random.normal(0, 0.4, (WIDTH, 64 if image else WIDTH)),
            b=random.normal(0, 0.3, 64 if image else WIDTH),
            **({"c__shape": np.array([0, 4, 4, 4])} if image else {}),
            **self.arrays,
        )

    def inputs(self) -> dict[str, np.ndarray]:
        """Rows for the model."""
        return {"x": np.random.default_rng(5).normal(0, 1, (ROWS, WIDTH)).astype(np.float32)}


STARTS = {
    "p": "p = Softplus (a) ",
    "u": "u = Tanh (a) ",
    "c": "c = Reshape (a, c__shape) ",
}


def _unary() -> list[Case]:
    anywhere = (
        "Abs Asinh Atan Cos Cosh Elu Celu Selu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu"
    )
    anywhere += " Sigmoid Sin Sinh Softplus Softsign Tan Tanh Shrink ThresholdedRelu"
    found = [Case(name, f"s = {name} (a)") for name in anywhere.split()]
    found += [Case(name, f"s = {name} (p)") for name in ("Log", "Sqrt", "Reciprocal")]
    found += [Case(name, f"s = {name} (u)") for name in ("Asin", "Acos", "Atanh")]
    forms = {
        "Shrink, attributes": "s = Shrink <lambd: float = 0.3, bias: float = 0.2> (a)",
        "ThresholdedRelu, attribute": "s = ThresholdedRelu <alpha: float = 0.25> (a)",
        "Elu, attribute": "s = Elu <alpha: float = 0.5> (a)",
        "Celu, attribute": "s = Celu <alpha: float = 0.5> (a)",
        "Selu, attributes": "s = Selu <alpha: float = 1.5, gamma: float = 0.5> (a)",
        "Gelu, tanh": 's = Gelu <approximate: string = "tanh"> (a)',
        "Dropout": "s = Dropout (a)",
        "Cast": "s = Cast <to: int = 1> (a)",
        "CastLike": "s = CastLike (a, x)",
        "Swish, written out": "g = Sigmoid (a) s = Mul (a, g)",
    }
    found += [Case(name, text) for name, text in forms.items()]
    return [*found, Case("Acosh", "q = Add (p, one) s = Acosh (q)", {"one": 1.0})]


def _steps() -> list[Case]:
    """The gradient goes beside them."""
    return [Case(name, f"r = {name} (a) s = Sub (a, r)") for name in ("Round", "Floor", "Ceil", "Sign")]


REDUCTIONS = (
    *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    *("ReduceLogSum", "ReduceLogSumExp"),
)


def _reductions() -> list[Case]:
    found = []
    for name in REDUCTIONS:
        source = "p" if name == "ReduceLogSum" else "a"
        if name == "ReduceLogSum":
            images = "e = Exp (c) "
            image = "e"
        else:
            images, image = "", "c"
        forms = {
            "kept": (f"s = {name} ({source}, axes)", [1]),
            "dropped": (f"s = {name} <keepdims: int = 0> ({source}, axes)", [1]),
            "negative axis": (f"s = {name} <keepdims: int = 0> ({source}, axes)", [-1]),
            "two axes": (f"{images}s = {name} <keepdims: int = 0> ({image}, axes)", [1, -1]),
            "the rows": (f"r = {name} <keepdims: int = 0> ({source}, axes) s = Mul (a, r)", [0]),
            "without axes": (f"r = {name} ({source}) s = Mul (a, r)", None),
            "without axes, dropped": (f"r = {name} <keepdims: int = 0> ({source}) s = Mul (a, r)", None),
        }
        if name in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd"):
            for keep in (0, 1):
                text = f"s = {name} <noop_with_empty_axes: int = 1, keepdims: int = {keep}> ({source})"
                forms[f"of nothing, keepdims={keep}"] = text, None
        for form, (text, axes) in forms.items():
            arrays = {} if axes is None else {"axes": np.array(axes)}
            found.append(Case(f"{name}, {form}", text, arrays, 1e-4 if name == "ReduceProd" else 2e-5))
    mask = np.ones((1, WIDTH))
    mask[0, 2] = 0
    twice = mask.copy()
    twice[0, 5] = 0
    return [
        *found,
        Case(
            "ReduceProd, one zero",
            "m = Mul (a, mask) r = ReduceProd (m, axes) s = Add (a, r)",
            {"mask": mask, "axes": np.array([1])},
        ),
        Case(
            "ReduceProd, two zeros",
            "m = Mul (a, mask) r = ReduceProd (m, axes) s = Add (a, r)",
            {"mask": twice, "axes": np.array([1])},
        ),
        Case("ReduceL2, zeros", "m = Mul (a, mask) s = ReduceL2 (m, axes)", {"mask": twice, "axes": np.array([1])}),
    ]


def _broadcasts() -> list[Case]:
    row, column = np.linspace(-1, 1, WIDTH)[None], "r = ReduceMean (a, axes) "
    axes = {"axes": np.array([1])}
    flags = np.array([[True, False] * (WIDTH // 2)])
    found = [
        Case("Where", "g = Greater (a, x) s = Where (g, a, x)"),
        Case("Where, scalar", "g = Greater (x, zero) s = Where (g, a, zero)", {"zero": 0.0}),
        Case("Where, row of flags", "s = Where (flags, a, x)", {"flags": flags}),
        Case("Where, column", column + "s = Where (flags, r, a)", {**axes, "flags": flags}),
        Case("Where, row", "g = Greater (x, zero) s = Where (g, row, a)", {"zero": 0.0, "row": row}),
        Case(
            "Where, all three",
            column + "i = Unsqueeze (a, two) j = Unsqueeze (r, two) k = Unsqueeze (x, one) g = Greater (k, zero) "
            "s = Where (g, i, j)",
            {**axes, "two": np.array([2]), "one": np.array([1]), "zero": 0.0},
        ),
        Case("Pow, number", "s = Pow (a, two)", {"two": 2.0}),
        Case("Pow, cube", "s = Pow (a, three)", {"three": 3.0}),
        Case("Pow, root", "s = Pow (p, half)", {"half": 0.5}),
        Case("Pow, row", "s = Pow (p, row)", {"row": row}),
        Case("Pow, whole number", "s = Pow (a, two)", {"two": np.array(2)}),
        Case("Pow, computed whole number", "i = ArgMax <axis: int = 1> (x) s = Pow (p, i)", {}, 1e-4),
        Case("Pow, column", "q = ReduceMean (p, axes) s = Pow (q, x)", axes, 1e-4),
        Case("Pow, computed exponent", "s = Pow (p, a)"),
        Case("Pow, trained exponent only", "e = Exp (x) s = Pow (e, a)", bound=1e-4),
        Case("Pow, computed exponent, broadcast", column + "s = Pow (p, r)", axes),
        Case(
            "Pow, computed exponent, all broadcast", column + "t = Transpose (r) q = Softplus (r) s = Pow (q, t)", axes
        ),
        Case("Clip", "s = Clip (a, low, high)", {"low": -0.5, "high": 0.5}),
        Case("Clip, below only", "s = Clip (a, low)", {"low": -0.2}),
        Case("Clip, above only", "s = Clip (a, , high)", {"high": 0.2}),
        Case(
            "Clip, computed bounds",
            "m = ReduceMean <keepdims: int = 0> (a) low = Sub (m, half) high = Add (m, half) s = Clip (a, low, high)",
            {"half": 0.4},
        ),
        Case("Mod", "s = Mod <fmod: int = 1> (a, d)", {"d": 0.3}, 1e-4),
        Case("Mod, computed", "s = Mod <fmod: int = 1> (x, p)"),
        Case("Mod, broadcast", "r = ReduceMean (p, axes) s = Mod <fmod: int = 1> (x, r)", axes, 1e-4),
        Case("PRelu", "s = PRelu (a, slope)", {"slope": row}),
    ]
    for name in ("Sum", "Mean", "Max", "Min"):
        found += [
            Case(f"{name}, one", f"s = {name} (a)"),
            Case(f"{name}, three", f"t = Tanh (a) s = {name} (a, x, t)"),
            Case(f"{name}, broadcast", column + f"s = {name} (x, r, a, row)", {**axes, "row": row}),
            Case(f"{name}, all broadcast", column + f"t = Transpose (r) s = {name} (r, t)", axes),
        ]
    for name in ("Add", "Sub", "Mul", "Div"):
        found += [
            Case(f"{name}, column", column + f"s = {name} (r, p)", axes, 1e-4),
            Case(
                f"{name}, all broadcast", column + f"q = Softplus (r) t = Transpose (q) s = {name} (r, t)", axes, 1e-4
            ),
        ]
    return found


def _sums() -> list[Case]:
    found = []
    for exclusive in (0, 1):
        for reverse in (0, 1):
            text = f"s = CumSum <exclusive: int = {exclusive}, reverse: int = {reverse}> (a, axis)"
            found.append(Case(f"CumSum, exclusive={exclusive} reverse={reverse}", text, {"axis": np.array(-1)}))
    return [*found, Case("CumSum, images", "s = CumSum (c, axis)", {"axis": np.array(2)})]


EINSUMS = {
    "ij->ij": "a",
    "ij->ji": "a",
    "ij->i": "a",
    "ij->": "a",
    "ij": "a",
    "ji": "a",
    "ij,jk->ik": "a, m",
    "ij,jk": "a, m",
    "ij,ij->i": "a, x",
    "ij,ij->": "a, x",
    "ij,kj->ik": "a, x",
    "ij,kl->ijkl": "a, x",
    "i,j->ij": "v, v",
    "i,i->": "v, v",
    "ij,j->i": "a, v",
    "bchw,bcxy->bhwxy": "c, c",
    "bchw,bchw->bc": "c, c",
    "bchw,bkhw->bck": "c, c",
    "bchw,cd->bdhw": "c, k",
    "bcii->bci": "c",
    "biii->bi": "c",
    "bcii->bc": "c",
    "b...->...b": "c",
    "...ij,...jk->...ik": "c, c",
    "...ij,jk->...ik": "c, k",
    "...i,ij": "a, m",
    "bij...,bjk...->bik...": "c, c",
    "ij,jk,kl->il": "a, m, m",
    "ij,ik,ijk->i": "a, x, t",
    "bchw,cd,he->bdew": "c, k, k",
}


def _einsums() -> list[Case]:
    arrays = {
        "m": np.random.default_rng(2).normal(0, 0.5, (WIDTH, WIDTH)),
        "k": np.random.default_rng(3).normal(0, 0.5, (4, 4)),
        "v__axes": np.array([0]),
        "t__axes": np.array([1]),
    }
    found = []
    for equation, operands in EINSUMS.items():
        start = "v = ReduceMean <keepdims: int = 0> (a, v__axes) " if "v" in operands else ""
        start += "o = Unsqueeze (a, t__axes) q = Unsqueeze (x, t__axes2) t = Mul (o, q) " if "t" in operands else ""
        used = {name: value for name, value in arrays.items() if f"{name}" in f"{start}{operands}"}
        if "t" in operands:
            used["t__axes2"] = np.array([2])
        text = f'{start}r = Einsum <equation: string = "{equation}"> ({operands}) '
        # A result without axes goes back to rows.
        text += "s = Mul (a, r)" if equation.endswith("->") else "s = Identity (r)"
        found.append(Case(f"Einsum, {equation}", text, used, 5e-5))
    return found


def _moves() -> list[Case]:
    n = np.array
    found = [
        Case("Flatten, axis 1", "s = Flatten (c)"),
        Case("Flatten, axis 0", "s = Flatten <axis: int = 0> (c)", fixed=True),
        Case("Flatten, axis 2", "s = Flatten <axis: int = 2> (c)", fixed=True),
        Case("Flatten, axis -1", "s = Flatten <axis: int = -1> (c)", fixed=True),
        Case("Flatten, axis 4", "s = Flatten <axis: int = 4> (c)", fixed=True),
        Case("DepthToSpace", "s = DepthToSpace <blocksize: int = 2> (c)"),
        Case("DepthToSpace, CRD", 's = DepthToSpace <blocksize: int = 2, mode: string = "CRD"> (c)'),
        Case("SpaceToDepth", "s = SpaceToDepth <blocksize: int = 2> (c)"),
        Case("Transpose", "s = Transpose <perm: ints = [0,3,1,2]> (c)"),
        Case("Squeeze", "r = ReduceMean (a, axes) s = Squeeze (r, axes)", {"axes": n([-1])}),
        Case("Unsqueeze", "s = Unsqueeze (a, axes)", {"axes": n([-1, 0])}),
        Case("Expand", "r = ReduceMean (a, axes) s = Expand (r, shape)", {"axes": n([1]), "shape": n([1, 5])}),
        Case("Expand, two ways", "s = Expand (a, shape)", {"shape": n([2, 1, 1])}),
        Case("Tile", "s = Tile (a, repeats)", {"repeats": n([2, 3])}, fixed=True),
        Case("Concat", "s = Concat <axis: int = -1> (a, x, a)"),
        Case("Concat, rows", "s = Concat <axis: int = 0> (a, x)", fixed=True),
        Case("Trilu, upper", "s = Trilu (c)"),
        Case("Trilu, lower", "s = Trilu <upper: int = 0> (c, k)", {"k": n(-1)}),
        Case("Trilu, beyond", "s = Trilu (c, k)", {"k": n(1)}),
        Case(
            "ReverseSequence",
            "s = ReverseSequence <batch_axis: int = 0, time_axis: int = 1> (a, l)",
            {"l": n([1, 3, 8])},
            fixed=True,
        ),
        Case("Reshape", "s = Reshape (a, shape)", {"shape": n([0, 2, -1])}),
        Case("Split, equal", "r, t = Split <axis: int = 1, num_outputs: int = 2> (a) s = Mul (r, t)"),
        Case(
            "Split, uneven",
            "r, t = Split <axis: int = 1> (a, l) m = ReduceSum (r, axes) s = Mul (m, t)",
            {"l": n([3, 5]), "axes": n([1])},
        ),
        Case(
            "Split, last shorter",
            "r, t, q = Split <axis: int = -1, num_outputs: int = 3> (a) s = Concat <axis: int = 1> (q, r, t)",
        ),
        Case("Split, unread", "r, s, t = Split <axis: int = -1> (a, l)", {"l": n([1, 4, 3])}),
        Case("Split, rows", "r = Transpose (a) t, s = Split <axis: int = 0> (r, l)", {"l": n([3, 5])}),
        Case("Split, one output", "s = Split <axis: int = 1, num_outputs: int = 1> (a)"),
    ]
    slices = {
        "Slice": ([1], [5], [1], [1]),
        "Slice, negative step": ([-1], [-100], [1], [-1]),
        "Slice, negative step of two": ([6], [0], [-1], [-2]),
        "Slice, step of three": ([0], [1000], [1], [3]),
        "Slice, negative bounds": ([-5], [-1], [1], [1]),
    }
    for name, parts in slices.items():
        arrays = {key: n(part) for key, part in zip(("b", "e", "axes", "steps"), parts, strict=True)}
        arrays["first"] = arrays.pop("b")
        found.append(Case(name, "s = Slice (a, first, e, axes, steps)", arrays))
    return [*found, *_pads()]


def _pads() -> list[Case]:
    n, found = np.array, []
    for mode in ("constant", "reflect", "edge", "wrap"):
        for name, pads in {"": [0, 2, 0, 3], ", cut": [0, -2, 0, -1], ", cut and padded": [0, -1, 0, 2]}.items():
            text = f's = Pad <mode: string = "{mode}"> (a, pads)'
            found.append(Case(f"Pad, {mode}{name}", text, {"pads": n(pads)}))
        text = f's = Pad <mode: string = "{mode}"> (c, pads, , axes)'
        found.append(Case(f"Pad, {mode}, axes", text, {"pads": n([1, 2, 0, 1]), "axes": n([-1, 2])}))
    return [*found, Case("Pad, value", "s = Pad (a, pads, v)", {"pads": n([0, 1, 0, 1]), "v": 0.7})]


def _indices() -> list[Case]:
    n = np.array
    many = np.random.default_rng(1).integers(-WIDTH, WIDTH, (ROWS, 5))
    apart = np.stack([np.random.default_rng(seed).permutation(WIDTH)[:5] for seed in range(ROWS)])
    updates = np.random.default_rng(4).normal(0, 1, (ROWS, 5))
    pairs = n([[0, 1], [2, -1], [1, 3]])
    twice = n([[0, 1], [0, 1], [2, -1]])
    return [
        Case("Gather", "s = Gather <axis: int = 1> (a, i)", {"i": n([0, 3, 3, -1])}),
        Case("Gather, table", "s = Gather <axis: int = -1> (a, i)", {"i": n([[0, 3], [3, -8]])}),
        Case("Gather, scalar", "s = Gather <axis: int = 1> (a, i)", {"i": n(-2)}),
        Case("Gather, computed", "i = ArgMax <axis: int = 0, keepdims: int = 0> (x) s = Gather <axis: int = 0> (a, i)"),
        Case("GatherElements", "s = GatherElements <axis: int = 1> (a, i)", {"i": many}, fixed=True),
        Case("GatherElements, computed", "i = ArgMin <axis: int = 1> (a) s = GatherElements <axis: int = 1> (a, i)"),
        Case("GatherND", "s = GatherND (a, i)", {"i": twice}, fixed=True),
        Case("GatherND, batch", "s = GatherND <batch_dims: int = 1> (a, i)", {"i": n([[0], [-1], [3]])}, fixed=True),
        Case(
            "ScatterElements", "s = ScatterElements <axis: int = 1> (a, i, v)", {"i": apart, "v": updates}, fixed=True
        ),
        Case(
            "ScatterElements, computed",
            "r = Slice (a, z, f, o) s = ScatterElements <axis: int = 1> (x, i, r)",
            {"i": apart - WIDTH, "z": n([0]), "f": n([5]), "o": n([1])},
            fixed=True,
        ),
        Case(
            "ScatterElements, add",
            'r = Slice (a, z, f, o) s = ScatterElements <axis: int = -1, reduction: string = "add"> (a, i, r)',
            {"i": many, "z": n([0]), "f": n([5]), "o": n([1])},
            fixed=True,
        ),
        Case(
            "ScatterND",
            "r = Gather <axis: int = 1> (a, o) s = ScatterND (a, i, r)",
            {"i": pairs, "o": n(2)},
            fixed=True,
        ),
        Case(
            "ScatterND, add",
            'r = Gather <axis: int = 1> (a, o) s = ScatterND <reduction: string = "add"> (a, i, r)',
            {"i": twice, "o": n(2)},
            fixed=True,
        ),
        Case("TopK", "s, i = TopK (a, k)", {"k": n([3])}),
        Case("TopK, smallest", "s, i = TopK <largest: int = 0> (a, k)", {"k": n([3])}),
        Case(
            "TopK, unsorted",
            "r, i = TopK <sorted: int = 0> (a, k) s = ReduceSum (r, axes)",
            {"k": n([3]), "axes": n([1])},
        ),
        Case("TopK, axis", "s, i = TopK <axis: int = 1> (c, k)", {"k": n([2])}),
        Case("TopK, rows", "s, i = TopK <axis: int = 0> (a, k)", {"k": n([2])}, fixed=True),
        Case(
            "OneHot",
            "i = ArgMax <axis: int = 1, keepdims: int = 0> (a) t = OneHot (i, d, v) s = Mul (a, t)",
            {"d": n(WIDTH), "v": np.array([0.5, 2.0])},
        ),
        Case(
            "NonZero",
            "g = Greater (a, zero) i = NonZero (g) j = Transpose (i) r = GatherND (a, j) t = ReduceSum (r) s = Mul (a, t)",
            {"zero": 0.0},
        ),
    ]


def _normalizations() -> list[Case]:
    found = [
        Case("GlobalMaxPool", "s = GlobalMaxPool (c)"),
        Case("GlobalAveragePool", "s = GlobalAveragePool (c)"),
        Case("GlobalLpPool", "s = GlobalLpPool (c)"),
        Case("GlobalLpPool, p=1", "s = GlobalLpPool <p: int = 1> (c)"),
        Case("LpNormalization", "s = LpNormalization (a)"),
        Case("LpNormalization, p=1", "s = LpNormalization <p: int = 1, axis: int = 1> (c)"),
        Case("MeanVarianceNormalization", "s = MeanVarianceNormalization (c)", {}, 1e-4),
        Case("MeanVarianceNormalization, axes", "s = MeanVarianceNormalization <axes: ints = [2,3]> (c)", {}, 1e-4),
        Case("LRN", "s = LRN <size: int = 3, alpha: float = 0.5, beta: float = 0.6, bias: float = 1.5> (c)"),
        Case("LRN, even size", "s = LRN <size: int = 2, alpha: float = 0.5> (c)"),
    ]
    for name in ("Softmax", "LogSoftmax"):
        found += [Case(f"{name}, axis {axis}", f"s = {name} <axis: int = {axis}> (c)") for axis in (0, 1, 2, -1)]
    return found


ALL = (
    *(*_unary(), *_steps(), *_reductions(), *_broadcasts(), *_sums(), *_einsums()),
    *(*_moves(), *_indices(), *_normalizations()),
)
CASES = {case.name: case for case in ALL}
