"""Gradients of standard ONNX operators that the engine lacks, or has slow ones of.

Each is a list of nodes `(operator, inputs, outputs)` in the notation of `Operator`.
"""

from __future__ import annotations

Nodes = list[tuple[str, list[str], list[str]]]

GRADIENTS: dict[str, Nodes] = {
    # The engine's own ReluGrad is a branch per element, some ten times slower than this product.
    "Relu": [("Sign", ["O(0)"], ["active"]), ("Mul", ["active", "GO(0)"], ["GI(0)"])],
    "Softplus": [("Sigmoid", ["I(0)"], ["slope"]), ("Mul", ["slope", "GO(0)"], ["GI(0)"])],
}
