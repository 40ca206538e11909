"""Layers in every variant, behind a trained layer: what training must compute rightly."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from conftest import onnx_model


@dataclass(frozen=True)
class Case:
    """Operators under test.

    Args:
        nodes: they read h, in the form of x, and give s.
        x: the shape without the batch; its first number counts channels, or its last where `dense`.
        arrays: initializers that the nodes read.
        opset: that the nodes are written in.
        dense: the layer before is a MatMul on the last axis, rather than a Conv of one point.
    """

    nodes: str
    x: tuple[int, ...]
    arrays: dict[str, object] = field(default_factory=dict)
    opset: int = 21
    dense: bool = False

    def model(self) -> ir.Model:
        """x → layer → h → s → Tanh → y, with a batch of any length."""
        dims = ",".join(map(str, ("n", *self.x)))
        return onnx_model(
            f"(float[{dims}] x) => (y) {{ h = {'MatMul' if self.dense else 'Conv'} (x, before) {self.nodes} y = Tanh (s) }}",
            opset=self.opset,
            before=self.before(),
            **self.arrays,
        )

    def before(self) -> np.ndarray:
        """The weight of the layer before."""
        size = self.x[-1] if self.dense else self.x[0]
        shape = (size, size) if self.dense else (size, size, *[1] * (len(self.x) - 1))
        return np.random.default_rng(5).normal(0, 0.7, shape)


def attributes(**given: object) -> str:
    """Attributes as ONNX text."""
    kinds = {int: "int", float: "float", str: "string"}
    parts = []
    for name, value in given.items():
        if isinstance(value, list):
            parts.append(f"{name}: {kinds[type(value[0])]}s = {str(value).replace(chr(39), chr(34))}")
        else:
            parts.append(
                f"{name}: {kinds[type(value)]} = {chr(34) + value + chr(34) if isinstance(value, str) else value}"
            )
    return f"<{', '.join(parts)}>" if parts else ""


def normal(*shape: int) -> np.ndarray:
    """Numbers of order one half."""
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape)


def conv_transpose(kernel: tuple[int, ...], image: tuple[int, ...], bias: bool = False, **given: object) -> Case:
    arrays = {"k": normal(*kernel), **({"b": normal(kernel[1] * int(given.get("group", 1)))} if bias else {})}
    return Case(f"s = ConvTranspose {attributes(**given)} (h, k{', b' if bias else ''})", image, arrays)


CONV_TRANSPOSE = {
    "plain 1-D": conv_transpose((2, 3, 3), (2, 5)),
    "all 1-D": conv_transpose((2, 2, 3), (2, 5), True, strides=[3], pads=[1, 2], output_padding=[2], dilations=[2]),
    "plain 2-D": conv_transpose((2, 3, 3, 2), (2, 4, 3)),
    "bias": conv_transpose((2, 3, 3, 2), (2, 4, 3), True),
    "strides": conv_transpose((2, 3, 3, 2), (2, 4, 3), strides=[2, 3]),
    "pads": conv_transpose((2, 3, 3, 3), (2, 4, 3), pads=[1, 0, 2, 1], strides=[2, 1]),
    "output_padding": conv_transpose(
        (2, 3, 3, 3), (2, 4, 3), True, strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1]
    ),
    "dilations": conv_transpose((2, 3, 3, 2), (2, 4, 3), dilations=[2, 3], strides=[2, 1]),
    "output_padding of a dilation": conv_transpose(
        (2, 3, 2, 2), (2, 4, 3), dilations=[1, 2], strides=[2, 3], output_padding=[1, 2]
    ),
    "groups": conv_transpose((4, 3, 3, 2), (4, 4, 3), True, group=2, strides=[2, 2]),
    "depthwise": conv_transpose(
        (4, 1, 3, 3), (4, 4, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    "one point": conv_transpose((2, 3, 1, 1), (2, 4, 3), strides=[2, 2]),
    "same upper": conv_transpose((2, 3, 3, 4), (2, 4, 3), auto_pad="SAME_UPPER", strides=[2, 1]),
    "same lower": conv_transpose((2, 3, 4, 3), (2, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "valid": conv_transpose((2, 3, 3, 2), (2, 4, 3), auto_pad="VALID", strides=[2, 1]),
    "output_shape": conv_transpose((2, 3, 4, 3), (2, 4, 3), output_shape=[7, 6], strides=[2, 2]),
    "3-D": conv_transpose((2, 2, 2, 3, 2), (2, 3, 2, 3), True, strides=[2, 1, 2], pads=[0, 1, 0, 1, 1, 0]),
}


def pool(operator: str, image: tuple[int, ...], **given: object) -> Case:
    return Case(f"s = {operator} {attributes(**given)} (h)", (2, *image))


POOLS = {
    f"{operator} {name}": pool(operator, image, **given)
    for operator in ("AveragePool", "MaxPool")
    for name, image, given in (
        ("1-D", (7,), {"kernel_shape": [3], "strides": [2]}),
        ("1-D ceil", (8,), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1, "pads": [1, 0]}),
        ("2-D", (6, 5), {"kernel_shape": [2, 3]}),
        ("2-D strides", (6, 5), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("2-D pads", (6, 5), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]}),
        ("2-D ceil", (6, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        (
            "2-D ceil and pads",
            (6, 7),
            {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        ),
        ("2-D dilations", (7, 6), {"kernel_shape": [2, 3], "dilations": [3, 2], "strides": [1, 2]}),
        (
            "2-D dilations, ceil, pads",
            (8, 7),
            {"kernel_shape": [2, 2], "dilations": [2, 3], "strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 0, 1]},
        ),
        ("2-D same upper", (6, 5), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("2-D same lower", (6, 5), {"kernel_shape": [3, 2], "strides": [1, 2], "auto_pad": "SAME_LOWER"}),
        ("2-D valid", (6, 5), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
        ("3-D", (4, 5, 3), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 1]}),
        (
            "3-D pads and ceil",
            (4, 5, 4),
            {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "pads": [1, 1, 1, 0, 1, 0], "ceil_mode": 1},
        ),
    )
}
POOLS |= {
    f"AveragePool padding counts, {name}": pool("AveragePool", image, count_include_pad=1, **given)
    for name, image, given in (
        ("1-D", (7,), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        ("2-D", (6, 5), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]}),
        ("ceil", (6, 7), {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
        ("3-D", (4, 5, 3), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 1], "pads": [1, 0, 1, 0, 1, 1]}),
    )
}
POOLS |= {"MaxPool by columns": pool("MaxPool", (6, 5), kernel_shape=[2, 2], storage_order=1)}


def resize(
    image: tuple[int, ...], scales: list[float] | None = None, sizes: list[int] | None = None, **given: object
) -> Case:
    arrays = {"scales": np.array([1, 1, *scales], np.float32)} if scales else {"sizes": np.array(sizes)}
    named = {"axes": list(range(2, 2 + len(image))), **given} if sizes else given
    return Case(f"s = Resize {attributes(**named)} (h, , {'scales' if scales else ', sizes'})", (2, *image), arrays)


COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
RESIZES = {
    f"nearest {coordinate} {rounding}": resize(
        (4, 5), [2.0, 0.6], mode="nearest", coordinate_transformation_mode=coordinate, nearest_mode=rounding
    )
    for coordinate in COORDINATES
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
}
RESIZES |= {
    f"{mode} {coordinate} {name}": resize((4, 5), mode=mode, coordinate_transformation_mode=coordinate, **size)
    for mode in ("linear", "cubic")
    for coordinate in COORDINATES
    for name, size in {
        "scales": {"scales": [2.0, 1.7]},
        "down": {"scales": [0.6, 0.5]},
        "sizes": {"sizes": [7, 3]},
        "one": {"sizes": [1, 9]},
    }.items()
}
RESIZES |= {
    "nearest sizes": resize((4, 5), sizes=[7, 9], mode="nearest"),
    "nearest 1-D": resize((5,), [2.0], mode="nearest"),
    "linear 1-D": resize((5,), [2.5], mode="linear"),
    "linear one axis": resize((4, 5), [1.0, 2.0], mode="linear"),
    "nearest 3-D": resize((2, 3, 2), [2.0, 1.5, 2.0], mode="nearest"),
    "linear 3-D": resize((2, 3, 2), [2.0, 1.5, 2.0], mode="linear"),
    "cubic a": resize((4, 5), [2.0, 2.0], mode="cubic", cubic_coeff_a=-0.5),
    "cubic excludes": resize((4, 5), [2.0, 2.0], mode="cubic", exclude_outside=1),
    "antialias": resize((6, 5), [0.5, 0.6], mode="linear", antialias=1),
    "symmetric": resize((4, 5), [1.3, 1.7], mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    "upsample 9": Case(
        's = Upsample <mode: string = "nearest"> (h, scales)',
        (2, 4, 5),
        {"scales": np.array([1, 1, 2, 3], np.float32)},
        opset=9,
    ),
    "upsample 9 linear": Case(
        's = Upsample <mode: string = "linear"> (h, scales)',
        (2, 4, 5),
        {"scales": np.array([1, 1, 2, 3], np.float32)},
        opset=9,
    ),
    "upsample 7": Case(
        's = Upsample <mode: string = "nearest", scales: floats = [1.0, 1.0, 2.0, 3.0]> (h)', (2, 4, 5), {}, opset=7
    ),
    "resize 10": Case(
        's = Resize <mode: string = "nearest"> (h, scales)',
        (2, 4, 5),
        {"scales": np.array([1, 1, 2, 1.6], np.float32)},
        opset=10,
    ),
}

GAIN, SHIFT = 1 + normal(4), normal(4)
NORMS = {
    f"instance {len(image)}-D": Case("s = InstanceNormalization (h, g, b)", (4, *image), {"g": GAIN, "b": SHIFT})
    for image in ((5,), (3, 4), (2, 3, 2))
}
NORMS |= {
    "instance epsilon": Case(
        "s = InstanceNormalization <epsilon: float = 0.1> (h, g, b)", (4, 3, 4), {"g": GAIN, "b": SHIFT}
    ),
    "instance shares gain": Case(
        "t = InstanceNormalization (h, g, b) u = Tanh (t) s = InstanceNormalization (u, g, b)",
        (4, 3, 4),
        {"g": GAIN, "b": SHIFT},
    ),
    "group 21": Case("s = GroupNormalization <num_groups: int = 2> (h, g, b)", (4, 3, 2), {"g": GAIN, "b": SHIFT}),
    "group 21, 1-D": Case("s = GroupNormalization <num_groups: int = 4> (h, g, b)", (4, 3), {"g": GAIN, "b": SHIFT}),
    "group 21, one": Case(
        "s = GroupNormalization <num_groups: int = 1, epsilon: float = 0.1> (h, g, b)", (4, 3), {"g": GAIN, "b": SHIFT}
    ),
    "group 18": Case(
        "s = GroupNormalization <num_groups: int = 2> (h, g, b)", (4, 3, 2), {"g": GAIN[:2], "b": SHIFT[:2]}, opset=18
    ),
    "layer": Case("s = LayerNormalization (h, g, b)", (3, 4), {"g": GAIN, "b": SHIFT}, dense=True),
    "layer without shift": Case("s = LayerNormalization (h, g)", (3, 4), {"g": GAIN}, dense=True),
    "layer axis 1": Case(
        "s = LayerNormalization <axis: int = 1, epsilon: float = 0.1> (h, g, b)",
        (3, 4),
        {"g": 1 + normal(3, 4), "b": normal(3, 4)},
        dense=True,
    ),
    "layer axis -2": Case(
        "s = LayerNormalization <axis: int = -2> (h, g)", (2, 3, 4), {"g": 1 + normal(3, 4)}, dense=True
    ),
    "layer, mean and deviation are read": Case(
        "t, m, d = LayerNormalization (h, g, b) u = Mul (t, d) s = Add (u, m)",
        (3, 4),
        {"g": GAIN, "b": SHIFT},
        dense=True,
    ),
    "layer with a computed gain": Case(
        "q = Sigmoid (h) r = ReduceMean <keepdims: int = 0> (q, axes) s = LayerNormalization (h, r)",
        (3, 4),
        {"axes": np.array([0, 1])},
        dense=True,
    ),
    "rms": Case(
        "q = Mul (h, h) v = ReduceMean (q, axes) e = Add (v, eps) d = Sqrt (e) t = Div (h, d) s = Mul (t, g)",
        (3, 4),
        {"axes": np.array([-1]), "eps": 1e-5, "g": GAIN},
        dense=True,
    ),
    "rms by reciprocal": Case(
        "q = Pow (h, two) v = ReduceMean (q, axes) e = Add (v, eps) d = Sqrt (e) r = Reciprocal (d) t = Mul (h, r) s = Mul (t, g)",
        (3, 4),
        {"axes": np.array([-1]), "eps": 1e-5, "two": 2.0, "g": GAIN},
        dense=True,
    ),
}


def recurrent(operator: str, inputs: str = "wrb", outputs: str = "y", **given: object) -> Case:
    """Batches of 4 steps of 3 numbers; `inputs` are w, r, b, h and c, `outputs` y, h and c."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    count = 2 if given.get("direction") == "bidirectional" else 1
    arrays = {
        "w": normal(count, gates * 2, 3),
        "r": normal(count, gates * 2, 2),
        "b": 0.3 + normal(count, 2 * 2 * gates),
    }
    arrays = {name: array for name, array in arrays.items() if name in inputs}
    names = ", ".join(name if name in inputs else "" for name in "wrb")
    states = ""
    start = ""
    if "h" in inputs:
        arrays |= {"first": normal(3, count * 2), "at": np.array([-1, count, 2]), "zero": np.array(0)}
        start = "e = Gather <axis: int = 1> (h, zero) i = MatMul (e, first) j = Reshape (i, at) k0 = Transpose <perm: ints = [1,0,2]> (j) "
        states = ", , k0" + (", k0" if "c" in inputs else "")
    results = ", ".join({"y": "o", "h": "oh", "c": "oc"}[one] for one in "yhc"[: 3 if operator == "LSTM" else 2])
    arrays |= {"end": np.array([0, -1, 2 * count])}
    joined = {
        "y": "ot = Transpose <perm: ints = [2,0,1,3]> (o) ",
        "h": "oht = Transpose <perm: ints = [1,0,2]> (oh) ",
        "c": "oct = Transpose <perm: ints = [1,0,2]> (oc) ",
    }
    text = f"{start}t = Transpose <perm: ints = [1,0,2]> (h) {results} = {operator} {attributes(hidden_size=2, **given)} (t, {names}{states}) "
    text += "".join(joined[one] for one in outputs)
    pieces = []
    for one, value in (("y", "ot"), ("h", "oht"), ("c", "oct")):
        if one in outputs:
            text += f"{value}r = Reshape ({value}, end) "
            pieces.append(f"{value}r")
    text += f"s = Concat <axis: int = 1> ({', '.join(pieces)})"
    return Case(text, (4, 3), arrays, dense=True)


RECURRENT = {
    f"{operator} {direction}{' ' + extra if extra else ''}": recurrent(
        operator, inputs, outputs, direction=direction, **given
    )
    for operator, forms in {
        "LSTM": (
            ("", "wrb", "y", {}),
            ("states", "wrbhc", "yhc", {}),
            ("without bias", "wr", "hc", {}),
            ("activations", "wrb", "yh", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
        ),
        "GRU": (
            ("", "wrb", "y", {}),
            ("reset last", "wrb", "y", {"linear_before_reset": 1}),
            ("states", "wrbh", "yh", {}),
            ("reset last, states", "wrbh", "yh", {"linear_before_reset": 1}),
            ("reset last, without bias", "wr", "h", {"linear_before_reset": 1}),
            ("without bias", "wrh", "h", {}),
        ),
        "RNN": (
            ("", "wrb", "y", {}),
            ("states", "wrbh", "yh", {}),
            ("activations", "wrb", "h", {"activations": ["Softsign"]}),
        ),
    }.items()
    for direction in ("forward", "reverse", "bidirectional")
    for extra, inputs, outputs, given in [
        (
            extra,
            inputs,
            outputs,
            {
                name: value * (2 if direction == "bidirectional" and name == "activations" else 1)
                for name, value in given.items()
            },
        )
        for extra, inputs, outputs, given in forms
    ]
}

CASES = {**CONV_TRANSPOSE, **POOLS, **{f"resize {name}": case for name, case in RESIZES.items()}, **NORMS, **RECURRENT}


def sequence(text: str, **arrays: object) -> Case:
    """An LSTM that is not unrolled."""
    weights = {"w": normal(1, 8, 3), "r": normal(1, 8, 2), "b": normal(1, 16)}
    return Case(f"t = Transpose <perm: ints = [1,0,2]> (h) o, s = {text}", (4, 3), {**weights, **arrays}, dense=True)


REFUSED = {
    "ConvTranspose with output_padding is refused": (
        conv_transpose((2, 3, 2, 2), (2, 4, 3), dilations=[3, 3], output_padding=[2, 2]),
        "output_padding is not less than the stride",
    ),
    "ConvTranspose of a larger output_shape": (
        conv_transpose((2, 3, 2, 2), (2, 4, 3), output_shape=[9, 9]),
        "an output of 9 elements is asked for, and 5 are computed",
    ),
    "MaxPool whose places by columns are read": (
        Case(
            "m, i = MaxPool <kernel_shape: ints = [2, 2], storage_order: int = 1> (h) f = Cast <to: int = 1> (i) s = Add (m, f)",
            (2, 6, 5),
        ),
        "by columns",
    ),
    "a window behind the image": (
        pool("AveragePool", (4, 5), kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
        "the last window of AveragePool lies behind the image",
    ),
    "Resize that crops": (
        Case(
            's = Resize <mode: string = "linear", coordinate_transformation_mode: string = "tf_crop_and_resize"> (h, roi, scales)',
            (2, 4, 5),
            {
                "roi": np.array([0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9], np.float32),
                "scales": np.array([1, 1, 2, 2], np.float32),
            },
        ),
        "tf_crop_and_resize",
    ),
    "Resize 10 both ways": (
        Case(
            's = Resize <mode: string = "nearest"> (h, scales)',
            (2, 4, 5),
            {"scales": np.array([1, 1, 2, 0.6], np.float32)},
            opset=10,
        ),
        "shrinks one axis and stretches another",
    ),
    "LSTM with sequence lengths": (
        sequence("LSTM <hidden_size: int = 2> (t, w, r, b, lengths)", lengths=np.array([4, 3, 2], np.int32)),
        "a sequence_lens input",
    ),
    "LSTM with peepholes": (
        sequence("LSTM <hidden_size: int = 2> (t, w, r, b, , , , p)", p=normal(1, 6)),
        "peepholes",
    ),
    "LSTM that clips": (sequence("LSTM <hidden_size: int = 2, clip: float = 1.0> (t, w, r, b)"), "clip"),
    "LSTM with coupled gates": (
        sequence("LSTM <hidden_size: int = 2, input_forget: int = 1> (t, w, r, b)"),
        "input_forget",
    ),
    "LSTM with another activation": (
        sequence('LSTM <hidden_size: int = 2, activations: strings = ["HardSigmoid", "Tanh", "Tanh"]> (t, w, r, b)'),
        "activations HardSigmoid, Tanh, Tanh",
    ),
}
"""What is refused, and a part of the message."""
