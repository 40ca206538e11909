"""Batch normalization that is trained: its passes, its gradients, its statistics, and the model that is left."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model, text_of
from method_networks import plan, rows_for
from onnx.reference import ReferenceEvaluator

from pqc import engine, graph, layers, masking, pipeline, schedule
from pqc.errors import Interrupted, ScheduleError
from pqc.hardware import handover
from pqc.names import BUFFERS, NEXT, layout, unpacked
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE_UNFOLDED, compress, finalize
from pqc.workflows.firmware import IoType

EPSILON = 0.25
VECTORS = {"gamma": [2.0, 1.0], "beta": [0.5, 0.0], "mean": [1.0, -1.0], "var": [4 - EPSILON, 0.25]}
NORM = "BatchNormalization <epsilon: float = 0.25> ({}, gamma, beta, mean, var)"
FOLD = "<form: ints = [{}], epsilon: float = 0.25>"


def test_train_batchnorm_into_a_layer() -> None:
    model = onnx_model(
        f"(float[n,2] x) => (float[n,2] y) {{ p = MatMul (x, fc__weight) h = Add (p, fc__bias) y = {NORM.format('h')} }}",
        fc__weight=[[0.3, -0.6], [1.2, 0.1]],
        fc__bias=[1.0, 2.0],
        **VECTORS,
    )
    pipeline.run(model, "normalize,train-batchnorm", verify_each=True)
    weight, bias = "fc.weight.folded", "beta.folded"
    assert (
        text_of(model)
        == dedent(f"""
        (float[n,2] x) => (float[n,2] y)
        {weight} = pqc.norm.FoldedWeight {FOLD.format("1, -1")} (fc.weight, gamma, var)
        {bias} = pqc.norm.FoldedBias {FOLD.format("-1")} (beta, gamma, mean, var)
        p = MatMul (x, {weight})
        y = Add (p, {bias})""").strip()
    )
    assert initializers(model)["mean"].tolist() == [0, -3]  # less the bias, which is gone


def test_train_batchnorm_without_a_layer() -> None:
    model = onnx_model(f"(float[n,2,3] x) => (float[n,2,3] y) {{ h = Relu (x) y = {NORM.format('h')} }}", **VECTORS)
    pipeline.run(model, "normalize,train-batchnorm", verify_each=True)
    gain, bias = "gamma.folded", "beta.folded"
    assert (
        text_of(model)
        == dedent(f"""
        (float[n,2,3] x) => (float[n,2,3] y)
        h = Relu (x)
        {gain} = pqc.norm.FoldedGain {FOLD.format("-1, 1")} (gamma, var)
        {bias} = pqc.norm.FoldedBias {FOLD.format("-1, 1")} (beta, gamma, mean, var)
        BatchNormalization_y.gain.out = Mul (h, {gain})
        y = Add (BatchNormalization_y.gain.out, {bias})""").strip()
    )


def test_train_batchnorm_gives_each_its_own_parameters() -> None:
    """Exporters store equal tensors once; statistics belong to their place."""
    vectors = {"one": [1.0, 1.0], "zero": [0.0, 0.0]}
    twice = (
        "a = BatchNormalization (x, one, zero, zero, one) t = Tanh (a) y = BatchNormalization (t, one, zero, zero, one)"
    )
    model = onnx_model(f"(float[n,2] x) => (float[n,2] y) {{ {twice} }}", **vectors)
    pipeline.run(model, "normalize,train-batchnorm", verify_each=True)
    readers = [len(value.uses()) for value in model.graph.initializers.values()]
    assert sorted(readers) == [1, 1, 1, 1, 2, 2, 2, 2]  # beta and mean; gamma and variance, of factor and term


@pytest.mark.parametrize("attributes", ["training_mode: int = 1", "epsilon: float = 0.1"])
def test_train_batchnorm_leaves_alone(attributes: str) -> None:
    computed = "g = Abs (gamma)" if "epsilon" in attributes else "g = Identity (gamma)"
    outputs = "y, rm, rv" if "training" in attributes else "y"
    nodes = f"{computed} {outputs} = BatchNormalization <{attributes}> (x, g, beta, mean, var)"
    model = onnx_model(f"(float[n,2] x) => (float[n,2] y) {{ {nodes} }}", **VECTORS)
    pipeline.run(model, "normalize")
    before = text_of(model)
    pipeline.run(model, "train-batchnorm")
    assert text_of(model) == before


def test_attach_statistics() -> None:
    model = onnx_model(
        f"(float[n,2] x) => (float[n,2] y) {{ h = MatMul (x, fc__weight) y = {NORM.format('h')} }}",
        fc__weight=np.eye(2),
        **VECTORS,
    )
    pipeline.run(model, "normalize,train-batchnorm,attach-statistics")
    name = "BatchNormalization_y"
    weight, bias = "fc.weight.folded", "beta.folded"
    outs = [f"{name}.statistics.out", *(f"{name}.statistics.out_{i}" for i in (1, 2, 3))]
    assert (
        text_of(model)
        == dedent(f"""
        (float[n,2] x) => (float[n,2] y)
        {weight} = pqc.norm.FoldedWeight {FOLD.format("1, -1")} (fc.weight, gamma, var)
        {name}.weight.out = Identity (fc.weight)
        {name}.raw.out = MatMul (x, {name}.weight.out)
        {", ".join(outs)} = pqc.norm.BatchStatistics <axes: ints = [0], momentum: float = 0.9> ({name}.raw.out, mean, var)
        {bias} = pqc.norm.FoldedBias {FOLD.format("-1")} (beta, gamma, {outs[0]}, {outs[1]})
        {name}.corrected.out = pqc.norm.Corrected {FOLD.format("1, -1")} ({weight}, var, {outs[1]})
        h = MatMul (x, {name}.corrected.out)
        y = Add (h, {bias})""").strip()
    )


def test_fold_statistics() -> None:
    model = onnx_model(
        f"(float[n,2] x) => (float[n,2] y) {{ h = MatMul (x, fc__weight) y = {NORM.format('h')} }}",
        fc__weight=[[0.3, -0.6], [1.2, 0.1]],
        **VECTORS,
    )
    pipeline.run(model, "normalize,train-batchnorm,insert-masks{method=magnitude},freeze-masks,fold-statistics")
    assert [node.op_type for node in model.graph] == ["Mul", "MatMul", "Add"]  # the mask is for fold-masks
    arrays = initializers(model)
    gain = np.array([2, 1]) / np.sqrt(np.array([4, 0.5]))
    np.testing.assert_allclose(arrays["fc.weight"], [[0.3, -0.6], [1.2, 0.1]] * gain, rtol=1e-6)
    np.testing.assert_allclose(arrays["beta"], [0.5, 0] - np.array([1, -1]) * gain, rtol=1e-6)


def test_fold_statistics_leaves_learned_masks_alone() -> None:
    text = f"h = MatMul (x, fc__weight) b = {NORM.format('h')} y = MatMul (b, last)"
    model = onnx_model(
        f"(float[n,2] x) => (float[n,2] y) {{ {text} }}", fc__weight=np.eye(2), last=np.eye(2), **VECTORS
    )
    pipeline.run(model, "normalize,train-batchnorm,insert-masks,fold-statistics")
    assert [node.op_type for node in model.graph if node.domain == "pqc.norm"] == ["FoldedWeight"]


def test_legalize_writes_batch_normalization_as_a_factor_and_a_term() -> None:
    model = onnx_model(f"(float[n,2,3] x) => (float[n,2,3] y) {{ y = {NORM.format('x')} }}", **VECTORS)
    pipeline.run(model, "normalize,legalize", verify_each=True)
    assert (
        text_of(model)
        == dedent("""
        (float[n,2,3] x) => (float[n,2,3] y)
        BatchNormalization_y.gain_1.out = Mul (x, BatchNormalization_y.gain)
        y = Add (BatchNormalization_y.gain_1.out, BatchNormalization_y.shift)""").strip()
    )
    gain = np.array([2, 1]) / np.sqrt(np.array([4, 0.5]))
    np.testing.assert_allclose(initializers(model)["BatchNormalization_y.gain"].ravel(), gain, rtol=1e-6)
    assert [(one.value.name, one.role) for one in masking.parameters(model.graph)] == [
        ("BatchNormalization_y.gain", "gain"),
        ("BatchNormalization_y.shift", "shift"),
    ]


@pytest.mark.parametrize("batch_norm", ["", "train-batchnorm,"])
def test_a_factor_and_a_term_have_the_types_of_weights_and_biases(batch_norm: str) -> None:
    model = onnx_model(f"(float[n,2] x) => (float[n,2] y) {{ y = {NORM.format('x')} }}", **VECTORS)
    pipeline.run(model, f"normalize,{batch_norm}legalize,insert-quant{{weights=1,1,3 biases=1,2,4 inputs=1,3,3}}")
    steps = [float(np.ravel(layers.grid(node).scale)[0]) for node in model.graph if layers.is_quant(node)]
    assert sorted(steps) == [2**-4, 2**-3, 2**-3]
    assert [node.op_type for node in model.graph if not node.domain] == ["Mul", "Add"]
    pipeline.run(model, "fold-statistics,fold-quant")
    random = np.random.default_rng(0).normal(0, 2, (50, 2)).astype(np.float32)
    gain, shift = np.array([1, 1.375]), np.array([-0.5, 1.4375])  # 1 and sqrt(2) in eighths, their terms in sixteenths
    rounded = np.clip(np.rint(random * 8) / 8, -8, 7.875)
    assert np.array_equal(engine.evaluate(model, {"x": random})["y"], rounded * gain + shift)


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("2", (2,), "h = MatMul (x, c) y = Add (h, d)"),
        ("2,3", (2, 1), "y = Conv <group: int = 2, kernel_shape: ints = [1]> (x, c, d)"),
        ("2,3,3", (2, 1, 1), "y = Conv <group: int = 2, kernel_shape: ints = [1, 1]> (x, c, d)"),
    ],
)
def test_lower_affine(dims: str, shape: tuple[int, ...], expected: str) -> None:
    c, d = np.reshape([2.0, -1.0], shape), np.reshape([0.5, 1.0], shape)
    head = f"(float[n,{dims}] x) => (float[n,{dims}] y)"
    model = onnx_model(f"{head} {{ h = Mul (x, c) y = Add (h, d) }}", c=c, d=d)
    pipeline.run(model, "normalize,lower-affine", verify_each=True)
    assert text_of(model).split("\n", 1)[1].replace("\n", " ") == expected


@pytest.mark.parametrize("nodes", ["h = Mul (x, c) y = Add (h, c)", "h = Mul (x, e) y = Add (h, d)", "y = Mul (x, c)"])
def test_lower_affine_leaves_alone(nodes: str) -> None:
    """A parameter that is shared, one that is no vector of channels, a factor without a term."""
    known = {"c": [2.0, 1.0], "d": [0.5, 1.0], "e": [3.0]}
    model = onnx_model(
        f"(float[n,2] x) => (float[n,2] y) {{ {nodes} }}", **{key: known[key] for key in known if f" {key})" in nodes}
    )
    pipeline.run(model, "normalize")
    before = text_of(model)
    pipeline.run(model, "lower-affine")
    assert text_of(model) == before


# Gradients and statistics against ONNX's definition, in float64

LAYERS = {
    "dense": ("MatMul (x, w)", (3,), (3, 4), False),
    "dense, bias": ("MatMul (x, w)", (3,), (3, 4), True),
    "Gemm": ("Gemm <transB: int = 1> (x, w{})", (3,), (4, 3), True),
    "1-D": ("Conv <strides: ints = [2]> (x, w{})", (3, 7), (4, 3, 2), True),
    "2-D": ("Conv <pads: ints = [1,0,1,1]> (x, w{})", (2, 4, 3), (4, 2, 3, 2), False),
    "depthwise": ("Conv <group: int = 2> (x, w{})", (2, 4, 3), (4, 1, 2, 2), True),
    "alone, 1-D": ("Tanh (x)", (4, 5), (), False),
    "alone, 2-D": ("Tanh (x)", (4, 3, 2), (), False),
    "alone": ("Tanh (x)", (4,), (), False),
}
ROWS = 6


def network(name: str, *, training: bool, momentum: float = 0.7, epsilon: float = 0.05) -> ir.Model:
    """x → layer → BatchNormalization → Tanh → y."""
    layer, x, weight, biased = LAYERS[name]
    random = np.random.default_rng(3)
    arrays = {"w": random.normal(0, 0.6, weight)} if weight else {}
    arrays |= {"b": random.normal(0, 0.5, 4)} if biased else {}
    for part, low, high in (("gamma", -1.5, 1.5), ("beta", -0.5, 0.5), ("mean", -0.5, 0.5), ("var", 0.3, 2)):
        arrays[part] = random.uniform(low, high, 4)
    nodes = f"h = {layer.format(', b' if biased else '')} "
    if biased and layer.startswith("MatMul"):
        nodes = f"p = {layer} h = Add (p, b) "
    attributes = f"momentum: float = {momentum}, epsilon: float = {epsilon}, training_mode: int = {int(training)}"
    results = "n, after_mean, after_var" if training else "n"
    nodes += f"{results} = BatchNormalization <{attributes}> (h, gamma, beta, mean, var) y = Tanh (n)"
    outputs = "y, after_mean, after_var" if training else "y"
    # Without names, so that the reference has what onnx's parser gives.
    dims = ",".join(map(str, (ROWS, *x)))
    return onnx_model(f"(float[{dims}] x) => ({outputs}) {{ {nodes} }}", **arrays)


class Reference:
    """What ONNX's own evaluator makes of a network in training mode, in float64."""

    def __init__(self, name: str, feeds: dict[str, np.ndarray]) -> None:
        proto = graph.to_proto(network(name, training=True))
        self.arrays = {one.name: onnx.numpy_helper.to_array(one).astype(np.float64) for one in proto.graph.initializer}
        del proto.graph.initializer[:]
        for key, array in self.arrays.items():
            proto.graph.input.append(onnx.helper.make_tensor_value_info(key, onnx.TensorProto.DOUBLE, array.shape))
        self.evaluator = ReferenceEvaluator(proto)
        self.feeds = {key: array.astype(np.float64) for key, array in feeds.items()}

    def run(self, **changes: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """The mean squared error, and the running statistics afterwards."""
        y, mean, variance = self.evaluator.run(None, {"x": self.feeds["x"], **self.arrays, **changes})
        return float(np.mean((y - self.feeds["target"]) ** 2)), {"mean": mean, "var": variance}

    def gradient(self, key: str) -> np.ndarray:
        """Central differences of the loss along each element."""
        found = np.zeros_like(self.arrays[key])
        for place in np.ndindex(found.shape):
            losses = []
            for sign in (1, -1):
                moved = self.arrays[key].copy()
                moved[place] += sign * 1e-5
                losses.append(self.run(**{key: moved})[0])
            found[place] = (losses[0] - losses[1]) / 2e-5
        return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_is_that_of_training_mode(name: str) -> None:
    """The loss, the gradients of weight, gain and bias, and the statistics; float32 against float64."""
    model = network(name, training=False)
    random = np.random.default_rng(7)
    feeds = {"x": random.normal(0.3, 1, tuple(graph.dims(model.graph.inputs[0]))).astype(np.float32)}
    chain = "normalize,fold-constants,lower-gemm,train-batchnorm,legalize,attach-loss{loss=mse}"
    pipeline.run(model, f"{chain},attach-statistics,attach-updates,expose-parameters,differentiate")
    target = next(value for value in model.graph.inputs if value.name == "target")
    feeds["target"] = random.normal(0, 1, tuple(graph.dims(target))).astype(np.float32)
    reference = Reference(name, feeds)
    found = engine.evaluate(model, feeds)
    loss, after = reference.run()
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    gradients = unpacked(found["theta_grad"], layout(model))
    assert gradients.keys() == {"gamma", "beta", *(["w"] if LAYERS[name][2] else [])}
    for key, gradient in gradients.items():
        wanted = reference.gradient(key)
        wanted = wanted.T if gradient.shape != wanted.shape else wanted
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    moved = unpacked(found[BUFFERS + NEXT], layout(model, BUFFERS))
    # The running mean here is that without the layer's bias, which it loses.
    after["mean"] = after["mean"] - reference.arrays.get("b", 0.0)
    for key, array in moved.items():
        np.testing.assert_allclose(array, after[key], rtol=1e-5, atol=1e-6)
        assert np.abs(array - reference.arrays[key]).max() > 0.02


def test_the_gradient_goes_through_the_statistics() -> None:
    """To the layer before: along a factor of all that is normalized there is none, as epsilon is 0."""
    random = np.random.default_rng(0)
    model = onnx_model(
        """(float[6,3] x) => (float[6,4] y) { a = MatMul (x, before) h = MatMul (a, w)
        n = BatchNormalization <epsilon: float = 0.0> (h, gamma, beta, mean, var) y = Tanh (n) }""",
        before=random.normal(0, 1, (3, 3)),
        w=random.normal(0, 1, (3, 4)),
        gamma=random.uniform(0.5, 1, 4),
        beta=random.normal(0, 1, 4),
        mean=np.zeros(4),
        var=np.ones(4),
    )
    pipeline.run(model, "normalize,train-batchnorm,legalize,attach-loss{loss=mse},attach-statistics,attach-updates")
    pipeline.run(model, "expose-parameters,differentiate")
    feeds = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in (("x", (6, 3)), ("target", (6, 4)))}
    gradients = unpacked(engine.evaluate(model, feeds)["theta_grad"], layout(model))
    for name in ("before", "w"):
        weight = initializers_of_theta(model)[name]
        assert np.abs(gradients[name]).max() > 1e-2
        assert abs((gradients[name] * weight).sum()) < 1e-5


def initializers_of_theta(model: ir.Model) -> dict[str, np.ndarray]:
    return unpacked(graph.stored(model.graph.initializers["theta"]), layout(model))


# Whole trainings

PLAIN: dict[str, object] = {"weights": [1, 1, 5], "biases": [1, 2, 5], "inputs": [1, 2, 4], "outputs": [1, 3, 6]}
BITS = {"bits": [1, 1, 4], "granularity": "per_weight", "learns": "bits"}
COMPOSED: dict[str, tuple[str | None, dict[str, object], dict[str, object]]] = {
    "magnitude": ("magnitude", {"sparsity": 0.5}, PLAIN),
    "outputs": ("magnitude", {"sparsity": 0.3, "structure": "output"}, PLAIN),
    "1:2": ("wanda", {"pattern": "1:2", "batches": 4}, PLAIN),
    "cs, per channel": ("cs", {}, PLAIN | {"weights": {"bits": [1, 1, 5], "granularity": "per_channel"}}),
    "dst, groups": ("dst", {}, PLAIN | {"weights": {"bits": [1, 1, 3], "granularity": "per_group", "size": 2}}),
    "pdp, other modes": ("pdp", {}, PLAIN | {"weights": {"bits": [1, 0, 4], "overflow": "SAT_SYM", "rounding": "RND"}}),
    "autosparse, WRAP": ("autosparse", {}, PLAIN | {"inputs": {"bits": [1, 2, 4], "overflow": "WRAP"}}),
    "mdmm, chance": ("mdmm", {}, PLAIN | {"weights": {"bits": [1, 1, 3], "rounding": "S_RND"}}),
    "activation pruning": ("activation_pruning", {"batches": 4}, PLAIN),
    "learned bits": ("cs", {}, {"weights": BITS, "biases": BITS, "inputs": {"bits": [1, 2, 4], "learns": "bits"}}),
    "learned scales": (
        None,
        {},
        PLAIN | {"weights": {"bits": "ternary", "granularity": "per_channel", "learns": "power_of_two_scale"}},
    ),
    "binary": (None, {}, PLAIN | {"weights": {"bits": "binary", "granularity": "per_channel"}}),
}
LONG = ("learned bits", "mdmm, chance", "autosparse, WRAP")
"""Pairs of ten seconds each."""


def image_network() -> ir.Model:
    """Batch normalization at the input, behind a convolution, between two branches, and behind a dense layer."""
    random = np.random.default_rng(2)
    arrays: dict[str, object] = {}
    for name, channels in (("n0", 2), ("n1", 4), ("n2", 4), ("n3", 6)):
        for part, low, high in (("gamma", 0.5, 1.5), ("beta", -0.5, 0.5), ("mean", -0.3, 0.3), ("var", 0.5, 1.5)):
            arrays[f"{name}__{part}"] = random.uniform(low, high, channels)
    norm = "BatchNormalization ({0}, {1}__gamma, {1}__beta, {1}__mean, {1}__var)"
    return onnx_model(
        f"""(float[n,2,5,5] x) => (float[n,4] y) {{
            a = {norm.format("x", "n0")} c = Conv <pads: ints = [1,1,1,1]> (a, c__weight, c__bias)
            b = {norm.format("c", "n1")} r = Relu (b)
            d = Conv <pads: ints = [1,1,1,1]> (r, d__weight) s = Add (r, d) e = {norm.format("s", "n2")} t = Relu (e)
            f = Flatten (t) g = MatMul (f, g__weight) h = {norm.format("g", "n3")} k = Relu (h)
            y = MatMul (k, last__weight)
        }}""",
        c__weight=random.normal(0, 0.4, (4, 2, 3, 3)),
        c__bias=random.normal(0, 0.3, 4),
        d__weight=random.normal(0, 0.3, (4, 4, 3, 3)),
        g__weight=random.normal(0, 0.2, (100, 6)),
        last__weight=random.normal(0, 0.4, (6, 4)),
        **arrays,
    )


def make_trainer(folder: Path, name: str = "magnitude", **more: Any) -> Trainer:
    method, options, types = COMPOSED[name]
    training = {"batch_norm": "train", **more.pop("training", {})}
    plan_ = plan(method, options, quantization=types, training=training, **more)
    model = image_network()
    pipeline.run(model, NORMALIZE_UNFOLDED)
    dataset = rows_for(model)
    folder.mkdir(exist_ok=True)
    compressible, _ = compress(model, plan_, dataset.train, folder, verify_each=False)
    return Trainer(compressible, plan_, dataset, folder)


def running(trainer: Trainer) -> dict[str, np.ndarray]:
    return {key: trainer.state.values[key] for key in trainer.state.values if key.endswith((".mean", ".var"))}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in COMPOSED]
)
def test_the_clean_model_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    """Bit for bit, with every way to round and to prune; statistics, gains and biases have moved."""
    trainer = make_trainer(tmp_path, name, phases={"training": {"epochs": 3}})
    before = {key: array.copy() for key, array in trainer.state.values.items()}
    trained = trainer.train()
    clean, _ = finalize(trained, verify_each=False)
    assert not [node for node in clean.graph if node.domain.startswith("pqc.norm")]
    inputs, _ = trainer.data.test.all()
    wanted, found = (engine.evaluate(model, inputs)["y"] for model in (trained, clean))
    assert np.ptp(wanted) > 0.1
    assert np.array_equal(found, wanted)
    assert len(running(trainer)) == 8
    for key in before:
        if key.split(".")[0] in ("n0", "n1", "n2", "n3") and not key.endswith("bits"):
            assert not np.array_equal(trainer.state.values[key], before[key]), key


def test_running_statistics_stay_where_a_phase_says_so(tmp_path: Path) -> None:
    phases = {"training": {"epochs": 1}, "fine_tuning": {"epochs": 1, "statistics": "running"}}
    trainer = make_trainer(tmp_path, phases=phases)
    trainer._segment(0)
    before = {key: array.copy() for key, array in running(trainer).items()}
    trainer._segment(1)
    assert all(np.array_equal(before[key], array) for key, array in running(trainer).items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(accumulate: int, tmp_path: Path) -> None:
    class Impatient:
        def epoch(self, record: dict[str, object], done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

    more = {"phases": {"training": {"epochs": 2}, "fine_tuning": {"epochs": 2}}}
    more["training"] = {"accumulate": accumulate}
    whole, broken, resumed = (make_trainer(tmp_path / folder, **more) for folder in ("whole", "broken", "broken"))
    whole.train()
    broken.progress = Impatient()
    with pytest.raises(Interrupted):
        broken.train()
    resumed.resume()
    resumed.train()
    assert all(array.tobytes() == resumed.state.values[key].tobytes() for key, array in whole.state.values.items())


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ScheduleError, match="'training.batch_norm'"):
        schedule.load("cs-demo", {"training.batch_norm": "freeze"})


@pytest.mark.slow
@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
def test_the_firmware_computes_what_was_trained(io_type: IoType, tmp_path: Path) -> None:
    """Batch normalization in its four places; two are layers of their own in firmware."""
    trained = make_trainer(tmp_path, phases={"training": {"epochs": 2}}).train()
    clean, _ = finalize(trained, verify_each=False)
    samples = np.random.default_rng(0).normal(0, 1, (200, 2, 5, 5)).astype(np.float32)
    result = handover.hls(clean, tmp_path / "hls", samples=samples, backend="Vitis", io_type=io_type)
    assert np.ptp(result.outputs) > 0.5
    assert result.mismatches == 0
