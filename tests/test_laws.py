"""Laws that every pass keeps on random small networks, and the pipeline's text on random options."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import content, initializers, onnx_model
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st

from pqc import engine, fixed_masks, graph, layers, pipeline
from pqc.fixed_point import FixedPoint
from pqc.functions.quant import ROUNDING_MODES
from pqc.options import field_types
from pqc.passes import TABLE
from pqc.passes.calibrate_quant import CalibrateQuant
from pqc.quantizer import Quantizer
from pqc.rewriting import Pass
from pqc.samples import sample
from pqc.verifier import verify

BATCH = 4
MAX_LINES = 200
MAX_SUMMARY = 72
# A network that breaks a law is small already; shrinking it would take minutes.
FIND = (Phase.explicit, Phase.reuse, Phase.generate)

# Random networks

NORM = "BatchNormalization ({}, {n}__gamma, {n}__beta, {n}__mean, {n}__var)"


class Writer:
    """Writes the text of a network node by node, and draws its weights."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.lines: list[str] = []
        self.arrays: dict[str, object] = {}

    def node(self, text: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def weight(self, name: str, *shape: int) -> str:
        self.arrays[name] = self.random.normal(0, 0.6, shape)
        return name

    def dense(self, value: str, inputs: int, outputs: int) -> str:
        name = f"l{len(self.lines)}"
        kind = self.draw(st.sampled_from(["MatMul", "MatMul and Add", "Gemm", "Gemm without bias"]))
        if kind.startswith("MatMul"):
            product = self.node(f"MatMul ({value}, {self.weight(f'{name}__weight', inputs, outputs)})")
            bias = kind.endswith("Add")
            return self.node(f"Add ({product}, {self.weight(f'{name}__bias', outputs)})") if bias else product
        weight = self.weight(f"{name}__weight", outputs, inputs)
        bias = "" if kind.endswith("bias") else f", {self.weight(f'{name}__bias', outputs)}"
        return self.node(f"Gemm <transB: int = 1> ({value}, {weight}{bias})")

    def conv(self, value: str, inputs: int, outputs: int) -> str:
        name = f"l{len(self.lines)}"
        groups, width = self.draw(st.sampled_from([(1, 1), (1, 3), (inputs, 3)]))
        weight = self.weight(f"{name}__weight", outputs, inputs // groups, width, width)
        bias = self.draw(st.sampled_from(["", f", {name}__bias"]))
        if bias:
            self.weight(f"{name}__bias", outputs)
        pad = (width - 1) // 2
        options = (
            f"group: int = {groups}, pads: ints = [{pad},{pad},{pad},{pad}], kernel_shape: ints = [{width},{width}]"
        )
        return self.node(f"Conv <{options}> ({value}, {weight}{bias})")

    def after(self, value: str, channels: int) -> str:
        """Perhaps a batch normalization, perhaps an activation."""
        if self.draw(st.booleans()):
            name = f"n{len(self.lines)}"
            for part, low, high in (("gamma", 0.5, 1.5), ("beta", -1, 1), ("mean", -1, 1), ("var", 0.5, 2)):
                self.arrays[f"{name}__{part}"] = self.random.uniform(low, high, channels)
            value = self.node(NORM.format(value, n=name))
        function = self.draw(st.sampled_from(["", "Relu", "Tanh", "Sigmoid"]))
        return self.node(f"{function} ({value})") if function else value

    def model(self, inputs: str, output: str) -> ir.Model:
        self.lines.append(f"y = {self.draw(st.sampled_from(['Identity', 'Relu', 'Softmax', 'Tanh']))} ({output})")
        text = "\n".join(self.lines)
        return onnx_model(f"(float[batch,{inputs}] x) => (y) {{ {text} }}", named=False, **self.arrays)


@st.composite
def dense_networks(draw: st.DrawFn) -> ir.Model:
    """One to three dense layers, perhaps with two branches that meet."""
    writer, width, value = Writer(draw), 5, "x"
    for _ in range(draw(st.integers(1, 2))):
        value = writer.after(writer.dense(value, width, 4), 4)
        width = 4
    if draw(st.booleans()):
        left, right = (writer.after(writer.dense(value, width, 4), 4) for _ in range(2))
        value, width = writer.node(f"{draw(st.sampled_from(['Add', 'Mul', 'Sub', 'Sum']))} ({left}, {right})"), 4
    return writer.model("5", writer.dense(value, width, 3))


@st.composite
def image_networks(draw: st.DrawFn) -> ir.Model:
    """One or two convolutions, perhaps with a pool, and a dense layer."""
    writer, value, channels, size = Writer(draw), "x", 2, 6
    for _ in range(draw(st.integers(1, 2))):
        value, channels = writer.conv(value, channels, 4), 4
        value = writer.after(value, channels)
        pool = draw(st.sampled_from(["", "MaxPool", "AveragePool"])) if size == 6 else ""
        if pool:
            value = writer.node(f"{pool} <kernel_shape: ints = [2,2], strides: ints = [2,2]> ({value})")
            size = 3
    flat = writer.node(f"Flatten ({value})")
    return writer.model("2,6,6", writer.dense(flat, channels * size * size, 3))


NORMS = (
    "{n} = LayerNormalization <epsilon: float = 0.01> ({v}, {n}__gain, {n}__shift)",
    """{n}m = ReduceMean <keepdims: int = 1> ({v}, last) {n}c = Sub ({v}, {n}m) {n}s = Pow ({n}c, two)
    {n}v = ReduceMean ({n}s, last) {n}e = Add ({n}v, epsilon) {n}r = Sqrt ({n}e) {n}d = Div ({n}c, {n}r)
    {n}g = Mul ({n}d, {n}__gain) {n} = Add ({n}g, {n}__shift)""",
)


@st.composite
def attention_networks(draw: st.DrawFn) -> ir.Model:
    """Attention with one head, a layer normalization before and perhaps one behind."""
    writer = Writer(draw)
    constants = {"last": np.array([-1]), "tokens": np.array([1]), "two": 2.0, "epsilon": 0.01, "scale": 0.5}

    def norm(value: str) -> str:
        name = f"n{len(writer.lines)}"
        writer.lines.append(draw(st.sampled_from(NORMS)).format(n=name, v=value))
        writer.arrays[f"{name}__gain"] = writer.random.uniform(0.5, 1.5, 5)
        writer.arrays[f"{name}__shift"] = writer.random.normal(0, 0.5, 5)
        return name

    x = norm("x")
    q, k, v = (writer.node(f"MatMul ({x}, {writer.weight(f'{name}__weight', 5, 4)})") for name in "qkv")
    scores = writer.node(f"MatMul ({q}, {writer.node(f'Transpose <perm: ints = [0,2,1]> ({k})')})")
    weights = writer.node(f"Softmax ({writer.node(f'Mul ({scores}, scale)')})")
    context = writer.node(f"MatMul ({weights}, {v})")
    projected = writer.node(f"MatMul ({context}, {writer.weight('o__weight', 4, 5)})")
    joined = writer.node(f"Add (x, {projected})")
    joined = norm(joined) if draw(st.booleans()) else joined
    pooled = writer.node(f"ReduceMean <keepdims: int = 0> ({joined}, tokens)")
    writer.arrays |= constants
    return writer.model("3,5", writer.dense(pooled, 5, 3))


networks = dense_networks() | image_networks()
NETWORKS = {"expand-softmax": attention_networks(), "expand-layernorm": attention_networks()}
"""What the passes are tried on that change nothing in the others."""

# Where each pass has its legal place: what runs before it.

FLOAT = "normalize,fold-batchnorm,legalize"
QUANTIZED = f"{FLOAT},insert-quant{{inputs=1,3,4}}"
MASKED = f"{QUANTIZED},insert-masks"
MASKED_DST = f"{QUANTIZED},insert-masks{{method=dst}}"
MASKED_WANDA = f"{QUANTIZED},insert-masks{{method=wanda pruning-first=false}}"
MASKED_LAST = f"{QUANTIZED},insert-masks{{pruning-first=false}}"
LEARNED = f"{FLOAT},insert-quant{{weights=1,1,4/per_weight/SAT_SYM/bits inputs=1,3,4/per_channel/fractional_bits}}"
SCALED = f"{FLOAT},insert-quant{{weights=ternary/per_channel/scale inputs=1,3,4/power_of_two_scale}}"
BINARY = f"{FLOAT},insert-quant{{weights=binary/per_channel inputs=1,3,4}},calibrate-quant{{samples=64}}"
HALF_UP = f"{FLOAT},insert-quant{{weights=1,0,3 inputs=1,1,1/per_channel/RND/bits}}"
GATED = f"{HALF_UP},freeze-bits,lower-bits"
WRAPPING = f"{FLOAT},insert-quant{{weights=1,0,3 inputs=1,1,2/WRAP}},fold-quant"
NORMED = "normalize,train-batchnorm,legalize,insert-quant{inputs=1,3,4}"
NORMED_LAST = f"{NORMED},insert-masks{{pruning-first=false}}"
LOSS = "attach-loss{loss=mse},fix-batch{size=4}"
EXPOSED = f"{LOSS},expose-parameters"
STEP = f"{EXPOSED},differentiate,attach-optimizer"
FOLDED = f"{MASKED},freeze-masks,fold-masks,fold-quant"

PLACES = {
    "normalize": [""],
    "fold-constants": ["normalize", QUANTIZED],
    "simplify": ["normalize", QUANTIZED],
    "free-batch": ["fix-batch{size=4}", f"{QUANTIZED},fix-batch{{size=4}}"],
    "fold-batchnorm": ["normalize"],
    "expand-softmax": ["normalize"],
    "expand-layernorm": ["normalize", "normalize,expand-softmax"],
    "unroll-recurrent": ["normalize"],
    "train-batchnorm": ["normalize", "normalize,lower-gemm"],
    "legalize": ["normalize,fold-batchnorm", "normalize"],
    "insert-quant": [FLOAT],
    "calibrate-quant": [QUANTIZED, SCALED, BINARY],
    "merge-quant": [QUANTIZED, LEARNED, f"{QUANTIZED},insert-quant{{outputs=1,5,9}}", FOLDED],
    "insert-masks": [FLOAT, QUANTIZED],
    "apply-masks": [FLOAT, QUANTIZED, MASKED, MASKED_LAST, f"{QUANTIZED},insert-masks{{method=magnitude}}"],
    "bypass-masks": [MASKED, MASKED_LAST],
    "bypass-quant": [QUANTIZED, LEARNED, SCALED, MASKED_LAST],
    "attach-loss": [FLOAT, MASKED],
    "attach-costs": [f"{LEARNED},attach-loss{{loss=mse}}", f"{LEARNED},insert-masks,attach-loss{{loss=mse}}"],
    "attach-updates": [f"{MASKED_DST},attach-loss{{loss=mse}}", f"{MASKED_WANDA},attach-loss{{loss=mse}}"],
    "attach-statistics": ["normalize,train-batchnorm,legalize", NORMED_LAST, f"{NORMED},insert-masks"],
    "expose-parameters": [f"{MASKED_WANDA},{LOSS},attach-updates", f"{MASKED},{LOSS}", f"{FLOAT},{LOSS}"],
    "attach-teacher": [f"{MASKED},{EXPOSED}", f"{FLOAT},{EXPOSED}"],
    "fix-batch": [FLOAT, f"{MASKED},attach-loss"],
    "relax-overflow": [LEARNED, QUANTIZED],
    "lower-learned": [f"{LEARNED},attach-loss{{loss=mse}},attach-costs,attach-updates,relax-overflow"],
    "dither-quant": [f"{FLOAT},insert-quant{{weights=1,1,3/S_RND inputs=1,3,4/S_TRN/WRAP}},fix-batch{{size=4}}"],
    "lower-quant": [f"{MASKED},{EXPOSED}", f"{SCALED},{EXPOSED}", f"{MASKED_LAST},{EXPOSED}"],
    "batch-parameters": [f"{MASKED},{EXPOSED},lower-quant", f"{MASKED_LAST},{EXPOSED}"],
    "differentiate": [
        f"{MASKED_DST},{LOSS},attach-updates,expose-parameters",
        f"{MASKED},{EXPOSED}",
        f"{MASKED},{EXPOSED},lower-quant,batch-parameters",
        f"{LEARNED},attach-loss{{loss=mse}},attach-costs,fix-batch{{size=4}},expose-parameters",
        f"{SCALED},{EXPOSED},lower-quant,batch-parameters",
        f"{NORMED},insert-masks,{LOSS},attach-statistics,attach-updates,expose-parameters,batch-parameters",
    ],
    "attach-optimizer": [f"{MASKED_LAST},{EXPOSED},differentiate"],
    "freeze-masks": [MASKED, MASKED_LAST, MASKED_DST],
    "fold-statistics": [
        NORMED,
        f"{NORMED_LAST},freeze-masks",
        f"{NORMED},insert-masks,freeze-masks",
        f"{NORMED},insert-masks",
    ],
    "freeze-bits": [LEARNED, SCALED],
    "lower-bits": [
        f"{HALF_UP},freeze-bits",
        f"{LEARNED},freeze-bits",
        f"{LEARNED},insert-masks,freeze-masks,freeze-bits,fold-masks",
    ],
    "insert-relu-multiplier": [FLOAT, QUANTIZED],
    "fold-relu-multiplier": [
        f"{FLOAT},insert-relu-multiplier{{start=-1.5}},insert-quant{{inputs=1,3,4}}",
        f"{HALF_UP},insert-relu-multiplier{{start=2}},freeze-bits",
        f"{LEARNED},insert-relu-multiplier{{start=2}},insert-masks,freeze-masks,freeze-bits",
    ],
    "fold-masks": [f"{LEARNED},insert-masks,freeze-masks", f"{MASKED},freeze-masks", f"{MASKED_LAST},freeze-masks"],
    "fold-quant": [QUANTIZED, f"{MASKED},freeze-masks,fold-masks"],
    "shrink": [FLOAT, FOLDED, f"{QUANTIZED},fold-quant", f"{MASKED},freeze-masks,fold-masks"],
    "strip-training": [f"{MASKED},{STEP}", f"{FLOAT},attach-loss"],
    "write-bipolar": [BINARY, f"{BINARY},fold-quant"],
    "lower-affine": ["normalize,legalize", "normalize,legalize,insert-quant{inputs=1,3,4},fold-quant"],
    "lower-bipolar": [f"{BINARY},fold-quant", f"{BINARY},fold-quant,write-bipolar"],
    "strip-softmax": [FLOAT, FOLDED],
    "lower-gemm": [FLOAT, FOLDED],
    "lower-conv": [FLOAT, FOLDED],
    "lower-pool": [FLOAT, FOLDED],
    "lower-reshape": [FLOAT, FOLDED],
    "write-qcdq": [FOLDED, f"{QUANTIZED},fold-quant"],
    "lower-scales": [FOLDED],
    "fold-gates": [GATED],
    "raise-bits": [GATED, QUANTIZED],
    "lower-tables": [f"{QUANTIZED},insert-quant{{outputs=1,2,5}}", f"{LEARNED},freeze-bits"],
    "drop-wraps": [WRAPPING, QUANTIZED],
}
OPTIONS: dict[str, dict[str, object]] = {"calibrate-quant": {"samples": 64}, "fix-batch": {"size": BATCH}}
# The outputs that each of these takes away, on purpose.
DROPS_OUTPUTS = {"differentiate", "strip-training", "expose-parameters"}


def test_every_pass_has_a_legal_place() -> None:
    assert set(PLACES) == set(TABLE)


def prepare(model: ir.Model, passes: str) -> None:
    """Run a pipeline, with gates of both signs wherever masks appear, and without bits here and there."""
    for text in pipeline.parse(passes) if passes else []:
        pipeline.run(model, [text])
        if text.title == "insert-quant" and passes.startswith(HALF_UP):
            for name, value in model.graph.initializers.items():
                if name.endswith(".integer_bits") and graph.stored(value).size > 1:
                    random = np.random.default_rng(len(name))
                    bits = np.where(random.random(value.shape) < 0.3, -9, graph.stored(value))
                    graph.set_initializer(value, bits.astype(np.float32))
        if text.title == "insert-masks":
            for name, value in model.graph.initializers.items():
                if name.endswith(".s"):
                    random = np.random.default_rng(len(name))
                    graph.set_initializer(value, random.normal(0.3, 1, value.shape).astype(np.float32))


def outputs(model: ir.Model) -> dict[str, np.ndarray]:
    """What the model computes for samples; an input has the same values whatever the model.

    Unfused: which operators the engine fuses depends on the graph's form, and fusing moves the last bits.
    """
    feeds = {}
    for name, array in sample(model, BATCH).items():
        random = np.random.default_rng(sum(map(ord, name)))
        feeds[name] = random.normal(0, 1.5, array.shape).astype(np.float32) if array.dtype == np.float32 else array
    return engine.evaluate(model, feeds, fuse=False)


def difference(old: np.ndarray, new: np.ndarray) -> float:
    """The largest difference over the largest magnitude."""
    assert old.shape == new.shape
    assert np.isfinite(old).all() and np.isfinite(new).all()
    return float(np.abs(old.astype(np.float64) - new).max() / max(np.abs(old).max(), 1e-30))


def assert_lawful(model: ir.Model, one: Pass) -> None:
    before, before_content = graph.copy(model), content(model)
    names = [value.name for value in model.graph.outputs]

    count = one.rewrite(model)
    verify(model)
    after_content = content(model)
    assert (count == 0) == (after_content == before_content), f"counted {count}"

    kept = [value.name for value in model.graph.outputs]
    if one.title not in DROPS_OUTPUTS:
        assert [name for name in kept if name in names] == [name for name in names if name != "theta_grad"]
    old, new = outputs(before), outputs(model)
    bound = {"exact": 0.0, "close": one.meaning.bound}.get(one.meaning.kind, np.inf)
    for name in set(names) & set(kept):
        assert difference(old[name], new[name]) <= bound, name

    assert one.rewrite(model) == 0, "the second run"
    assert content(model) == after_content


def taught_by_itself(model: ir.Model, folder: Path) -> dict[str, object]:
    """The network as it is now becomes the teacher of what is made of it."""
    teacher = graph.copy(model)
    pipeline.run(teacher, "normalize,fold-batchnorm")
    graph.save(teacher, folder / "teacher.onnx")
    return {"model": str(folder / "teacher.onnx"), "loss": "mse", "layers": '{"*": 0.5}'}


def half_pruned(model: ir.Model, folder: Path) -> dict[str, object]:
    """Masks that leave every other number of each weight."""
    weights = {str(layer.weight.name): graph.stored(layer.weight) for layer in layers.layers(model.graph)}
    masks = {name: (np.arange(array.size) % 2 > 0).reshape(array.shape) for name, array in weights.items()}
    fixed_masks.write(folder / "masks.npz", masks)
    return {"file": str(folder / "masks.npz")}


@pytest.mark.parametrize("title", PLACES)
def test_laws(title: str, tmp_path: Path) -> None:
    @settings(max_examples=6, phases=FIND)
    @given(NETWORKS.get(title, networks), st.sampled_from(PLACES[title]))
    def law(model: ir.Model, place: str) -> None:
        options = OPTIONS.get(title, {}) | (taught_by_itself(model, tmp_path) if title == "attach-teacher" else {})
        prepare(model, place)
        options |= half_pruned(model, tmp_path) if title == "apply-masks" else {}
        assert_lawful(model, TABLE[title](**options))

    law()


ATTENTION = "normalize,expand-softmax,expand-layernorm,legalize"
ATTENTION_QUANTIZED = f"{ATTENTION},insert-quant{{inputs=1,3,4}},calibrate-quant{{samples=64}}"
ATTENTION_LEARNED = f"{ATTENTION},insert-quant{{weights=1,1,4/per_weight/bits inputs=1,3,4/bits}}"
ATTENTION_PLACES = {
    "legalize": "normalize,expand-softmax,expand-layernorm",
    "insert-quant": ATTENTION,
    "calibrate-quant": f"{ATTENTION},insert-quant{{inputs=1,3,4}}",
    "merge-quant": ATTENTION_QUANTIZED,
    "fold-quant": ATTENTION_QUANTIZED,
    "insert-masks": ATTENTION_QUANTIZED,
    "attach-costs": f"{ATTENTION_LEARNED},attach-loss{{loss=mse}}",
    "differentiate": f"{ATTENTION_LEARNED},attach-loss{{loss=mse}},attach-costs,fix-batch{{size=4}},expose-parameters",
    "lower-bits": f"{ATTENTION_LEARNED},freeze-bits",
    "lower-tables": ATTENTION_QUANTIZED,
    "shrink": ATTENTION_QUANTIZED,
    "write-qcdq": f"{ATTENTION_QUANTIZED},fold-quant",
}


@pytest.mark.parametrize("title", ATTENTION_PLACES)
def test_laws_on_attention(title: str) -> None:
    @settings(max_examples=3, phases=FIND)
    @given(attention_networks())
    def law(model: ir.Model) -> None:
        prepare(model, ATTENTION_PLACES[title])
        assert_lawful(model, TABLE[title](**OPTIONS.get(title, {})))

    law()


kinds = st.builds(Quantizer, st.builds(FixedPoint, st.sampled_from([0, 1]), st.integers(0, 4), st.integers(1, 6)))


@given(networks, kinds, kinds, st.sampled_from(ROUNDING_MODES))
@settings(max_examples=5, phases=FIND)
def test_quant_passes_keep_the_laws_with_any_type(
    model: ir.Model, weights: Quantizer, inputs: Quantizer, mode: str
) -> None:
    prepare(model, FLOAT)
    assert_lawful(model, TABLE["insert-quant"](weights=weights, biases=weights, inputs=inputs, rounding=mode))
    assert_lawful(model, TABLE["fold-quant"]())


@given(networks, st.booleans())
@settings(max_examples=8, phases=FIND)
def test_strip_training_gives_back_the_compressible_graph(model: ir.Model, pruning_first: bool) -> None:
    prepare(model, MASKED if pruning_first else MASKED_LAST)
    pipeline.run(model, f"fix-batch{{size={BATCH}}}")
    compressible = graph.copy(model)
    pipeline.run(model, STEP.replace(f"fix-batch{{size={BATCH}}},", ""))
    pipeline.run(model, "strip-training")
    expected = initializers(compressible)
    assert initializers(model).keys() == expected.keys()
    assert all(np.array_equal(array, expected[name]) for name, array in initializers(model).items())
    for side in ("inputs", "outputs"):
        kept, wanted = (getattr(one.graph, side) for one in (model, compressible))
        assert [(value.name, str(value.shape)) for value in kept] == [
            (value.name, str(value.shape)) for value in wanted
        ]
    assert sorted((node.op_type, node.name) for node in model.graph) == sorted(
        (node.op_type, node.name) for node in compressible.graph
    )
    found, wanted = outputs(model), outputs(compressible)
    np.testing.assert_array_equal(found["y"], wanted["y"])


# Text

words = st.text("abcXYZ019_.*/- {}é", min_size=1, max_size=8)


def values(kind: object) -> st.SearchStrategy[object]:
    """Any value of an option's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if one is type(None) else values(one) for one in arguments])
    if origin is tuple:
        return st.lists(words, max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(words, words, max_size=3)
    known: dict[object, st.SearchStrategy[object]] = {
        Quantizer: st.builds(
            Quantizer,
            st.builds(FixedPoint, st.sampled_from([0, 1]), st.integers(-5, 15), st.integers(6, 16)),
            st.sampled_from(["per_tensor", "per_channel", "per_weight"]),
            rounding=st.sampled_from([None, "RND", "FLOOR"]),
            overflow=st.sampled_from(["SAT", "WRAP"]),
            learns=st.sampled_from([None, "fractional_bits"]),
        ),
        bool: st.booleans(),
        int: st.integers(1, 2**30),
        float: st.floats(allow_nan=False),
        str: words,
    }
    return known[kind]


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    kind = TABLE[draw(st.sampled_from(sorted(TABLE)))]
    types_by_name = field_types(kind)
    chosen = draw(st.sets(st.sampled_from(sorted(types_by_name)))) if types_by_name else set()
    options = {name: draw(values(types_by_name[name])) for name in sorted(chosen)}
    try:
        return kind(**options)
    except ValueError:
        reject()


@given(st.lists(passes(), min_size=1, max_size=4))
@settings(max_examples=200)
def test_pipeline_text_round_trips(chosen: list[Pass]) -> None:
    text = pipeline.unparse(chosen)
    assert pipeline.parse(text) == chosen
    assert pipeline.unparse(pipeline.parse(text)) == text


@pytest.mark.parametrize(
    "path", ["my data.npz", "a,b.npz", "{x}.npz", "x}.npz", "größe.npz", 'a"b.npz', "a\\b.npz", "none", "x=y"]
)
def test_pipeline_text_round_trips_with_any_file_name(path: str) -> None:
    chosen = [CalibrateQuant(data=path)]
    assert pipeline.parse(pipeline.unparse(chosen)) == chosen


# Form


@pytest.mark.parametrize("title", TABLE)
def test_docstrings_and_size(title: str) -> None:
    kind = TABLE[title]
    summary = kind.summary()
    assert len(summary) <= MAX_SUMMARY
    assert summary.endswith(".")
    verb = summary.split()[0]
    assert verb[0].isupper()
    assert verb == "Bring" or not verb.endswith(("s", "ing", "ed")), "the summary starts with an imperative"
    text = inspect.getdoc(kind) or ""
    assert "→" in text, "before → after"
    assert "\nLeaves " in text, "what it leaves alone"
    source = inspect.getsource(inspect.getmodule(kind))
    assert source.count("\n") <= MAX_LINES
    classes = [one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == kind.__name__]
    assert len(classes) == 1
    words_of_class = "".join(word.capitalize() for word in title.split("-"))
    assert kind.__name__.lower() == words_of_class.lower()
