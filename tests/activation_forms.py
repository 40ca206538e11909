"""Activation functions in the forms that exporters write, from `h` to `a`, with their constants."""

from __future__ import annotations

CONSTANTS = {
    "minus": -1.0,
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "root": 2**0.5,
    "three": 3.0,
    "six": 6.0,
    "cube": 0.044715,
    "factor": (2 / 3.141592653589793) ** 0.5,
    "slope": 0.2,
}
FORMS = {
    "LeakyRelu": "a = LeakyRelu <alpha: float = 0.1015625> (h)",
    "PRelu": "a = PRelu (h, slope)",
    "hard tanh": "a = Clip (h, minus, one)",
    "relu6, Clip": "a = Clip (h, zero, six)",
    "relu6, Min": "r = Relu (h) a = Min (r, six)",
    "HardSigmoid": "a = HardSigmoid <alpha: float = 0.16666667> (h)",
    "HardSigmoid, arithmetic": "p = Add (h, three) c = Clip (p, zero, six) a = Div (c, six)",
    "HardSwish": "a = HardSwish (h)",
    "HardSwish, HardSigmoid": "s = HardSigmoid <alpha: float = 0.16666667> (h) a = Mul (h, s)",
    "HardSwish, arithmetic": "p = Add (h, three) c = Clip (p, zero, six) m = Mul (h, c) a = Div (m, six)",
    "Gelu": "a = Gelu (h)",
    "Gelu, PyTorch": "d = Div (h, root) e = Erf (d) p = Add (e, one) m = Mul (h, p) a = Mul (m, half)",
    "Gelu, Keras": "d = Div (h, root) e = Erf (d) p = Add (e, one) k = Mul (p, half) a = Mul (h, k)",
    "Gelu, JAX": """c = Mul (h, h) d = Mul (c, h) e = Mul (d, cube) f = Add (h, e) g = Mul (f, factor) t = Tanh (g)
        u = Add (t, one) k = Mul (u, half) a = Mul (h, k)""",
    "Gelu, power": """d = Pow (h, three) e = Mul (d, cube) f = Add (h, e) g = Mul (f, factor) t = Tanh (g)
        u = Add (t, one) k = Mul (h, half) a = Mul (k, u)""",
    "SiLU": "s = Sigmoid (h) a = Mul (h, s)",
    "SiLU, turned round": "s = Sigmoid (h) a = Mul (s, h)",
    "SiLU, exponential": "b = Neg (h) e = Exp (b) p = Add (e, one) a = Div (h, p)",
    "Elu": "a = Elu <alpha: float = 0.75> (h)",
    "Celu": "a = Celu (h)",
    "Selu": "a = Selu (h)",
    "Softplus": "a = Softplus (h)",
    "Softplus, JAX": "b = Abs (h) c = Neg (b) e = Exp (c) p = Add (e, one) l = Log (p) m = Max (h, zero) a = Add (m, l)",
    "Softsign": "a = Softsign (h)",
    "Softsign, PyTorch": "b = Abs (h) p = Add (b, one) a = Div (h, p)",
    "Mish": "a = Mish (h)",
    "Mish, PyTorch": "s = Softplus (h) t = Tanh (s) a = Mul (h, t)",
    "Tanh": "a = Tanh (h)",
    "tanh shrink": "t = Tanh (h) a = Sub (h, t)",
}


def constants(nodes: str) -> dict[str, float]:
    """The constants that `nodes` read."""
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in CONSTANTS.items() if name in words}
