"""Softmax, layer normalization and attention with quantizers inside: against the reference, trained, and in qonnx.

What is computed on grids equals the float64 reference bit for bit. Of tables that holds where no entry lies within float32's
rounding of a tie, which the tests check first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from test_differentiation import TRAIN, assert_finite_differences

import reference_quant as ref
from pqc import engine, graph, layers, metrics, pipeline, workflows
from pqc.conventions import CONVENTIONS
from pqc.errors import PassError, ScheduleError, UnsupportedError
from pqc.names import layout
from pqc.options import quote
from pqc.quantization_check import gaps

EXPAND = "normalize,expand-softmax,expand-layernorm,legalize"
# The result is read by a product with the unit matrix, so that it is not the head.
SOFTMAX = "(float[n,3,6] x) => (float[n,3,6] y) {{ p = Softmax <axis: int = {}> (x) y = MatMul (p, eye__weight) }}"
PARTS = ("input", "difference", "exp", "sum", "inverse", "output")
TYPES = {
    "narrow": {"exp": "0,1,5", "sum": "0,3,4", "inverse": "0,0,6", "output": "0,0,6"},
    "wide": {"exp": "0,0,10", "sum": "0,4,6", "inverse": "0,1,9", "output": "0,0,12"},
}
MARGIN = 5e-7
"""Relative: above what float32 rounds off, and above the 1e-7 that the reference adds to sums."""


def fixed(text: str, rounding: str) -> ref.Fixed:
    """The reference's quantizer for k,i,f."""
    k, i, f = map(int, text.split(","))
    return ref.Fixed(k, i, f, {"ROUND": "RND_CONV"}.get(rounding, rounding))


def assert_no_ties(values: np.ndarray, kind: str) -> None:
    """No value is so near to where its rounding changes that float32 and float64 may differ."""
    steps = np.ldexp(values, int(kind.split(",")[2]))
    assert np.all(np.abs(steps - np.floor(steps) - 0.5) > MARGIN * steps)


def insert(own: dict[str, dict[str, str | None]], options: str) -> str:
    return f"{EXPAND},insert-quant{{weights=none biases=none {options} layers={quote(json.dumps(own))}}}"


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("rounding", ["ROUND", "RND"])
@pytest.mark.parametrize("name", TYPES)
def test_softmax_equals_the_reference(name: str, rounding: str, axis: int, rng: np.random.Generator) -> None:
    types = {"input": "1,3,4", "difference": "0,3,4", **TYPES[name]}
    model = onnx_model(SOFTMAX.format(axis), eye__weight=np.eye(6))
    pipeline.run(model, insert({"Softmax_p": types}, f"rounding={rounding}"))
    x = rng.normal(0, 3, (200, 3, 6)).astype(np.float32)
    assert_no_ties(np.exp(-np.arange(128) / 16), types["exp"])
    _, i, f = map(int, types["sum"].split(","))
    sums = np.ldexp(np.arange(2.0 ** (f - 1), 2.0 ** (i + f)), -f)  # the largest of the exponentials is one
    assert_no_ties(1 / sums, types["inverse"])
    found = engine.evaluate(model, {"x": x})["y"]
    quantizers = ref.SoftmaxQuantizers(*(fixed(types[part], rounding) for part in PARTS))
    expected = ref.softmax(x, quantizers, axis=axis)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 20


def test_softmax_without_quantizers_is_the_operator(rng: np.random.Generator) -> None:
    """Large logits neither overflow nor divide by zero."""
    x = rng.normal(0, 40, (50, 3, 6)).astype(np.float32)
    model = onnx_model(SOFTMAX.format(-1), eye__weight=np.eye(6))
    pipeline.run(model, EXPAND)
    expected = ref.softmax(x, ref.SoftmaxQuantizers())
    np.testing.assert_allclose(engine.evaluate(model, {"x": x})["y"], expected, rtol=0, atol=3e-7)


def test_a_sum_that_rounds_to_zero_saturates_its_inverse() -> None:
    types = {"difference": "0,3,4", "exp": "0,1,7", "sum": "0,8,-3", "inverse": "0,2,5", "output": "0,0,8"}
    model = onnx_model(SOFTMAX.format(-1), eye__weight=np.eye(6))
    pipeline.run(model, insert({"Softmax_p": types}, "inputs=1,3,4"))
    x = np.zeros((1, 3, 6), np.float32)
    x[:, :, 1:] = -7
    found = engine.evaluate(model, {"x": x})["y"]
    assert np.isfinite(found).all()
    assert found[0, 0, 0] == 255 / 256


ATTENTION = """(float[n,5,4] q, float[n,5,4] k, float[n,5,4] v) => (float[n,5,4] y) {
    t = Transpose <perm: ints = [0,2,1]> (k)
    s = MatMul (q, t)
    d = Mul (s, scale)
    p = Softmax <axis: int = -1> (d)
    y = MatMul (p, v)
}"""


def test_attention_equals_the_reference(rng: np.random.Generator) -> None:
    types = {"input": "1,3,4", "difference": "0,3,4", **TYPES["wide"]}
    model = onnx_model(ATTENTION, scale=np.float32(0.5))
    pipeline.run(model, insert({"Softmax_p": types}, "inputs=1,7,8"))
    feeds = {name: np.rint(rng.normal(0, 8, (20, 5, 4))).astype(np.float32) / 8 for name in "qkv"}
    found = engine.evaluate(model, feeds)["y"]
    quantizers = ref.SoftmaxQuantizers(*(fixed(types[part], "ROUND") for part in PARTS))
    context, _ = ref.attention(feeds["q"], feeds["k"], feeds["v"], quantizers)
    np.testing.assert_array_equal(found, context)


def test_attention_is_rounded_at_both_factors_and_results() -> None:
    model = onnx_model(ATTENTION, scale=np.float32(0.5))
    pipeline.run(model, f"{EXPAND},insert-quant")
    rounded = {str(node.inputs[0].name) for node in model.graph if layers.is_quant(node) and node.inputs[0] is not None}
    inner = {f"Softmax_p.{part}.out" for part in ("difference", "exp", "sum", "inverse", "result")}
    assert rounded == {"q", "k", "v", "s", "d", *inner}
    assert not [gap for gap in gaps(model.graph) if gap.finding.fails]


NORM = """(float[n,3,8] x) => (float[n,3,8] y) {
    h = LayerNormalization <epsilon: float = 0.01> (x, norm__gain, norm__shift) y = MatMul (h, eye__weight)
}"""
NORM_TYPES = {
    "input": "1,2,5",
    "mean": "1,1,5",
    "centered": "1,3,5",
    "square": "0,4,6",
    "variance": "0,3,6",
    "inverse": "0,2,6",
    "normalized": "1,2,6",
    "weight": "1,1,5",
    "bias": "1,1,6",
    "output": "1,3,6",
}


def norm(rng: np.random.Generator) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    gain, shift = rng.uniform(0.5, 1.5, 8).astype(np.float32), rng.normal(0, 0.3, 8).astype(np.float32)
    return onnx_model(NORM, norm__gain=gain, norm__shift=shift, eye__weight=np.eye(8)), gain, shift


def test_layer_norm_equals_its_steps_in_float64(rng: np.random.Generator) -> None:
    """Means of eight numbers on a grid are exact, and so is all but the inverse deviation, a table."""
    model, gain, shift = norm(rng)
    pipeline.run(model, insert({"LayerNormalization_h": NORM_TYPES}, "inputs=1,3,4"))
    x = rng.normal(0.2, 1, (200, 3, 8)).astype(np.float32)
    q = {part: fixed(kind, "ROUND") for part, kind in NORM_TYPES.items()}
    entries = 1 / np.sqrt(np.arange(2**9) / 64 + np.float64(np.float32(0.01)))
    assert_no_ties(entries[entries < 4], NORM_TYPES["inverse"])
    rounded = q["input"](x)
    centered = q["centered"](rounded - q["mean"](rounded.mean(axis=-1, keepdims=True)))
    variance = q["variance"](q["square"](centered**2).mean(axis=-1, keepdims=True))
    normalized = q["normalized"](centered * q["inverse"](1 / np.sqrt(variance + np.float64(np.float32(0.01)))))
    expected = q["output"](normalized * q["weight"](gain) + q["bias"](shift))
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], expected)


def test_layer_norm_with_its_affine_part_rounded_is_the_reference(rng: np.random.Generator) -> None:
    """The normalization itself in float: the last bits of float32 change few results, and those by one step."""
    model, gain, shift = norm(rng)
    inner = dict.fromkeys(("mean", "centered", "square", "variance", "inverse", "normalized"))
    types = {name: NORM_TYPES[name] for name in ("input", "weight", "bias", "output")}
    pipeline.run(model, insert({"LayerNormalization_h": {**types, **inner}}, ""))
    x = rng.normal(0.2, 1, (200, 3, 8)).astype(np.float32)
    q = {part: fixed(kind, "ROUND") for part, kind in types.items()}
    expected = ref.layer_norm(x, gain, shift, q["input"], q["weight"], q["bias"], q["output"], epsilon=0.01)
    difference = np.abs(engine.evaluate(model, {"x": x})["y"] - expected)
    assert difference.max() <= 2.0**-6
    assert np.count_nonzero(difference) <= 5


def test_a_shift_that_is_a_bias_too_is_trained_once() -> None:
    text = (
        "(float[n,4] x) => (float[n,4] y) { h = MatMul (x, fc__weight) b = Add (h, fc__bias) "
        "z = LayerNormalization <axis: int = -1> (b, gain, fc__bias) y = MatMul (z, eye__weight) }"
    )
    arrays = {"fc__weight": np.eye(4), "fc__bias": np.zeros(4), "gain": np.ones(4), "eye__weight": np.eye(4)}
    model = onnx_model(text, **arrays)
    pipeline.run(model, f"{EXPAND},{TRAIN}")
    assert [name for name, _, _ in layout(model)] == ["fc.weight", "eye.weight", "fc.bias", "gain"]


def test_a_normalization_right_behind_another_is_written_out_too(rng: np.random.Generator) -> None:
    text = (
        "(float[n,4] x) => (float[n,4] y) { a = LayerNormalization (x, gain, shift) "
        "b = LayerNormalization (a, gain, shift) y = MatMul (b, eye__weight) }"
    )
    model = onnx_model(text, gain=rng.uniform(0.5, 1.5, 4), shift=rng.normal(0, 1, 4), eye__weight=np.eye(4))
    x = rng.normal(0, 1, (10, 4)).astype(np.float32)
    expected = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, EXPAND)
    assert "LayerNormalization" not in {node.op_type for node in model.graph}
    np.testing.assert_allclose(engine.evaluate(model, {"x": x})["y"], expected, rtol=0, atol=2e-6)


def test_several_axes_are_normalized_together(rng: np.random.Generator) -> None:
    before = NORM.replace("0.01", "0.01, axis: int = 1")
    gain, shift = rng.uniform(0.5, 1.5, (3, 8)), rng.normal(0, 0.3, (3, 8))
    model = onnx_model(before, norm__gain=gain, norm__shift=shift, eye__weight=np.eye(8))
    x = rng.normal(0.2, 1, (10, 3, 8)).astype(np.float32)
    expected = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, EXPAND)
    assert "LayerNormalization" not in {node.op_type for node in model.graph}
    np.testing.assert_allclose(engine.evaluate(model, {"x": x})["y"], expected, rtol=0, atol=2e-6)


# Gradients


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        ("p = Softmax (h)", {}),
        ("p = LayerNormalization <epsilon: float = 0.1> (h, gain, shift)", {"gain": np.ones(4), "shift": np.zeros(4)}),
    ],
    ids=["softmax", "layer normalization"],
)
def test_gradients_through_the_steps(node: str, constants: dict[str, np.ndarray]) -> None:
    model = onnx_model(
        f"(float[n,3,4] x) => (float[n,3,2] y) {{ h = MatMul (x, w) {node} y = MatMul (p, v) }}",
        w=np.ones((4, 4)),
        v=np.ones((4, 2)),
        **constants,
    )
    assert_finite_differences(model, f"{EXPAND},{TRAIN}")


# Quantizers of single parts


def types_of(own: dict[str, Any], options: str = "") -> dict[str, str]:
    model = onnx_model(SOFTMAX.format(-1), eye__weight=np.eye(6))
    pipeline.run(model, f"{EXPAND},insert-quant{{layers={quote(json.dumps(own))} {options}}}")
    found = {}
    for node in model.graph:
        grid = layers.grid(node) if layers.is_quant(node) else None
        if grid is not None:
            f, k = int(-np.log2(grid.scale)), int(grid.signed)
            found[str(node.name).removeprefix("Softmax_p.").removesuffix(".quant")] = (
                f"{k},{int(grid.bits) - k - f},{f}"
            )
    return found


def test_tables_have_types_of_their_own_by_pattern() -> None:
    found = types_of({"Soft*": {"exp": "0,1,9", "inverse": "0,1,11"}, "Softmax_p": {"exp": "0,1,12"}})
    assert (found["exp.out"], found["inverse.out"], found["sum.out"]) == ("0,1,12", "0,1,11", "0,0,7")


def test_parts_can_stay_in_float() -> None:
    found = types_of({"Softmax_p": {"exp": None, "output": "0,0,9"}})
    assert "exp.out" not in found and found["result.out"] == "0,0,9"


def test_an_excluded_softmax_stays_in_float() -> None:
    found = types_of({}, "exclude=Softmax_p")
    assert set(found) == {"eye.weight", "result.out"}


def test_a_pattern_that_meets_nothing_is_refused_and_names_what_there_is() -> None:
    with pytest.raises(PassError) as caught:
        types_of({"softmax": {"exp": "0,1,9"}})
    assert caught.value.hint == "layers: eye, Softmax_p"


def test_a_schedule_refuses_parts_that_do_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text('quantization: {layers: {"p": {exponential: {bits: [0, 1, 9]}}}}\n')
    with pytest.raises(ScheduleError, match="no tensor 'exponential'"):
        workflows.load_plan(str(path), workflows.resolve("jet_tagger"), {})


def test_the_steps_of_a_softmax_cost_what_the_reference_counts() -> None:
    """The operator's own count, and its two tables."""
    model = onnx_model(SOFTMAX.format(-1), eye__weight=np.eye(6))
    pipeline.run(model, insert({"Softmax_p": {"input": "1,3,4", "difference": "0,3,4", **TYPES["narrow"]}}, ""))
    costs = metrics.Probe(model, CONVENTIONS["products+additions"]).costs({})
    found = sum(one.ebops for one in costs if one.name.startswith("Softmax_p."))
    bits = {part: sum(map(int, kind.split(","))) for part, kind in TYPES["narrow"].items()}
    expected = ref.softmax_ebops(8, bits["exp"], bits["inverse"], (3, 6), "additions")
    expected += ref.table_ebops(7, bits["exp"], (3, 6), "additions")
    expected += ref.table_ebops(bits["sum"], bits["inverse"], (3, 1), "additions")
    assert found == pytest.approx(expected, rel=1e-6)


# End to end

NETWORK = """(float[batch,5,6] x) => (float[batch,3] y) {
    n = LayerNormalization (x, norm__gain, norm__shift)
    q = MatMul (n, q__weight)
    k = MatMul (n, k__weight)
    v = MatMul (n, v__weight)
    t = Transpose <perm: ints = [0,2,1]> (k)
    s = MatMul (q, t)
    d = Mul (s, scale)
    p = Softmax <axis: int = -1> (d)
    c = MatMul (p, v)
    o = MatMul (c, o__weight)
    r = Add (x, o)
    m = ReduceMean <keepdims: int = 0> (r, tokens)
    z = MatMul (m, fc__weight)
    y = Softmax <axis: int = -1> (z)
}"""
SCHEDULE = """
quantization:
  weights: {{bits: [1, 1, 5], overflow: SAT_SYM{learns}}}
  biases: {{bits: [1, 1, 5]}}
  inputs: {{bits: [1, 3, 6]{learns}}}
  layers: {{"Softmax_p": {{exp: {{bits: [0, 1, 9]}}, inverse: {{bits: [0, 1, 9]}}}}}}
pruning: {{method: {method}}}
training: {{learning_rate: 5e-3, batch: 64}}
phases: {{training: {{epochs: 8}}}}
"""


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with one head, and data: which of three features is the largest of five tokens."""
    folder = tmp_path_factory.mktemp("attention")
    random = np.random.default_rng(5)
    weights = {f"{name}__weight": random.normal(0, 0.8, (6, 4)) for name in "qkv"}
    model = onnx_model(
        NETWORK,
        **weights,
        o__weight=random.normal(0, 0.5, (4, 6)),
        fc__weight=random.normal(0, 0.5, (6, 3)),
        norm__gain=random.uniform(0.5, 1.5, 6),
        norm__shift=random.normal(0, 0.1, 6),
        scale=np.float32(0.5),
        tokens=np.array([1]),
    )
    graph.save(model, folder / "model.onnx")
    for part, rows in (("train", 600), ("test", 200)):
        x = random.normal(0, 1, (rows, 5, 6)).astype(np.float32)
        np.savez(folder / f"{part}.npz", x=x, y=x[:, :, :3].max(axis=1).argmax(axis=1))
    return folder


@pytest.mark.parametrize(("learns", "method"), [("", "cs"), (", learns: bits", "null")], ids=["pruned", "learned bits"])
def test_attention_is_trained_and_exact(transformer: Path, tmp_path: Path, learns: str, method: str) -> None:
    (tmp_path / "s.yaml").write_text(SCHEDULE.format(learns=learns, method=method))
    source = workflows.resolve(str(transformer / "model.onnx"))
    plan = workflows.load_plan(str(tmp_path / "s.yaml"), source, {})
    summary = workflows.run(source, plan, transformer, tmp_path / "out", workflows.RunOptions(hls=False))
    assert summary["clean_equals_trained"]
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]

    trained, clean = (graph.load(tmp_path / "out" / f"{name}.onnx") for name in ("trained", "clean"))
    before, after = (graph.stored(model.graph.initializers["norm.gain"]) for model in (source.load(), trained))
    assert np.any(before != after), "gains are trained"
    assert {node.domain for node in clean.graph} == {"", graph.QONNX}
    pipeline.run(clean, "strip-softmax")
    with np.load(transformer / "test.npz") as arrays:
        x = arrays["x"]
    whole = engine.evaluate(clean, {"x": x})["y"]
    for rows in (1, 7):
        fixed_batch = graph.copy(clean)
        pipeline.run(fixed_batch, f"fix-batch{{size={rows}}}")
        found = execute_onnx(ModelWrapper(graph.to_proto(fixed_batch)), {"x": x[:rows]})["y"]
        np.testing.assert_array_equal(found, whole[:rows])


def test_firmware_is_refused_before_training(transformer: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCHEDULE.format(learns="", method="null"))
    source = workflows.resolve(str(transformer / "model.onnx"))
    plan = workflows.load_plan(str(tmp_path / "s.yaml"), source, {})
    with pytest.raises(
        UnsupportedError, match="ReduceMean 'LayerNormalization_n.mean': .*hls4ml has no exact form of it"
    ):
        workflows.run(source, plan, transformer, tmp_path / "out", workflows.RunOptions())
    assert not (tmp_path / "out" / "trained.onnx").exists()
