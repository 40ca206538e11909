"""Distillation: the loss against the float64 reference, the graph, and runs with a teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import content, initializers, make_mlp, onnx_model, text_of
from test_functions import backward, run

import reference_pruning as ref
from pqc import data, engine, graph, layers, pipeline, schedule, workflows
from pqc.errors import Interrupted, PqcError, ScheduleError, TrainingError
from pqc.functions.losses import DISTILLATION
from pqc.models import TABLE
from pqc.names import layout
from pqc.passes.attach_teacher import AttachTeacher
from pqc.teacher import PREFIX
from pqc.training.stages import Stage, step_pipeline, values_of
from pqc.training.state import TrainingState
from pqc.workflows.compression import NORMALIZE

KL = DISTILLATION["kl"]
ROWS, BATCH = 2000, 32

TEACHER = """(float[rows,4] x) => (float[rows,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias)
    a = Tanh (h)
    w = MatMul (a, wide__weight)
    b = Relu (w)
    z = Gemm (b, fc2__weight, fc2__bias)
    y = Softmax <axis: int = -1> (z)
}"""


def make_teacher() -> ir.Model:
    """A deeper network than conftest's MLP, with one layer more and the same names for the others."""
    rng = np.random.default_rng(5)
    return onnx_model(
        TEACHER,
        fc1__weight=rng.normal(0, 0.7, (8, 4)),
        fc1__bias=rng.normal(0, 0.3, 8),
        wide__weight=rng.normal(0, 0.5, (8, 6)),
        fc2__weight=rng.normal(0, 0.7, (6, 3)),
        fc2__bias=rng.normal(0, 0.3, 3),
    )


def save(model: ir.Model, path: Path) -> Path:
    """Normalize a teacher and write it."""
    pipeline.run(model, NORMALIZE)
    graph.save(model, path)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The file of `make_teacher`."""
    return save(make_teacher(), tmp_path / "teacher.onnx")


def attach(path: Path, **options: object) -> list[AttachTeacher]:
    return [AttachTeacher(model=str(path), **options)]  # type: ignore[arg-type]


def exposed(model: ir.Model, loss: str = "cross-entropy", compress: str = "") -> ir.Model:
    pipeline.run(model, f"{NORMALIZE},{compress}attach-loss{{loss={loss}}},expose-parameters")
    return model


def values(path_or_model: Path | ir.Model, names: list[str], x: np.ndarray, **feeds: np.ndarray) -> list[np.ndarray]:
    """Inner values of a network in float64."""
    model = graph.load(path_or_model) if isinstance(path_or_model, Path) else graph.copy(path_or_model)
    by_name = {value.name: value for value in graph.values(model.graph)}
    model.graph.outputs[:] = [by_name[name] for name in names]
    found = engine.evaluate(model, {"x": x, **feeds}, fuse=False)
    return [found[name].astype(np.float64) for name in names]


@pytest.fixture
def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels for the small networks."""
    return rng.normal(0, 1.5, (BATCH, 4)).astype(np.float32), rng.integers(0, 3, BATCH)


# The operator


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 50.0])
def test_divergence_and_its_gradient_equal_the_reference(
    rng: np.random.Generator, temperature: float, spread: float
) -> None:
    student, teacher = rng.normal(0, spread, (2, 40, 5)).astype(np.float32)
    expected, slope = ref.kd_loss(student, teacher, np.full(40, -1), temperature, 1.0)
    value = run(KL.key, [student, teacher], temperature=temperature)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6 * temperature**2)
    gradient = backward(KL, np.float32(0.75), student, teacher, temperature=temperature)
    np.testing.assert_allclose(gradient, 0.75 * slope, rtol=1e-5, atol=2e-7 * temperature)


def test_divergence_gradient_equals_finite_differences(rng: np.random.Generator) -> None:
    student, teacher = rng.normal(0, 2, (2, 6, 4))
    gradient = backward(KL, np.float32(1), student, teacher, temperature=3.0)
    labels = np.full(6, -1)
    for place in np.ndindex(student.shape):
        moved = [student.copy(), student.copy()]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        losses = [ref.kd_loss(one, teacher, labels, 3.0, 1.0)[0] for one in moved]
        np.testing.assert_allclose(gradient[place], (losses[0] - losses[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_divergence_is_finite_for_huge_logits_and_zero_for_equal_ones() -> None:
    student, teacher = np.array([[1e4, -1e4, 0.0]]), np.array([[-1e4, 1e4, 0.0]])
    assert run(KL.key, [student, teacher], temperature=1.0)[0] == np.float32(2e4)
    assert run(KL.key, [student, student], temperature=1.0)[0] == 0.0
    assert not backward(KL, np.float32(1), student, student, temperature=1.0).any()


def test_divergence_is_a_mean_over_positions(rng: np.random.Generator) -> None:
    student, teacher = rng.normal(0, 2, (2, 3, 4, 5)).astype(np.float32)
    flat = [array.reshape(12, 5) for array in (student, teacher)]
    expected = run(KL.key, flat, temperature=2.0)[0]
    np.testing.assert_allclose(run(KL.key, [student, teacher], temperature=2.0)[0], expected, rtol=1e-6)
    gradient = backward(KL, np.float32(1), student, teacher, temperature=2.0)
    np.testing.assert_allclose(gradient.reshape(12, 5), backward(KL, np.float32(1), *flat, temperature=2.0), rtol=1e-6)


# The graph


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.7), (1.0, 0.0), (2.5, 1.0)])
def test_the_loss_mixes_labels_and_teacher(
    mlp: ir.Model, teacher: Path, batch: tuple[np.ndarray, np.ndarray], temperature: float, alpha: float
) -> None:
    x, target = batch
    pipeline.run(exposed(mlp), attach(teacher, temperature=temperature, alpha=alpha))
    own, theirs = values(mlp, ["z"], x, target=target)[0], values(teacher, ["z"], x)[0]
    expected, _ = ref.kd_loss(own, theirs, target, temperature, alpha)
    np.testing.assert_allclose(engine.evaluate(mlp, {"x": x, "target": target})["loss"], expected, rtol=1e-5)


def test_the_gradient_of_the_whole_graph_equals_finite_differences(
    mlp: ir.Model, teacher: Path, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    x, target = batch
    exposed(mlp)
    pipeline.run(mlp, [*attach(teacher, layers='{"fc1": 0.3}'), *pipeline.parse("batch-parameters,differentiate")])
    theta = graph.stored(mlp.graph.initializers["theta"])
    session = engine.Session(mlp)
    gradient = session.run({"x": x, "target": target})["theta_grad"]
    for place in range(theta.size):
        losses = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[place] += np.float32(sign * 4e-3)
            losses.append(float(session.run({"x": x, "target": target, "theta": moved})["loss"]))
        numeric = (losses[0] - losses[1]) / 8e-3
        assert abs(numeric - gradient[place]) <= 5e-3 * np.abs(gradient).max() + 5e-4, f"theta[{place}]"


def test_the_gradient_of_the_last_bias_equals_the_reference(
    mlp: ir.Model, teacher: Path, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    x, target = batch
    exposed(mlp)
    own, theirs = values(mlp, ["z"], x, target=target)[0], values(teacher, ["z"], x)[0]
    _, slope = ref.kd_loss(own, theirs, target, 4.0, 0.7)
    pipeline.run(mlp, [*attach(teacher), *pipeline.parse("differentiate")])
    place = sum(int(np.prod(shape)) for _, shape, _ in layout(mlp)[:-1])
    assert layout(mlp)[-1][0] == "fc2.bias"
    found = engine.evaluate(mlp, {"x": x, "target": target})["theta_grad"][place:]
    np.testing.assert_allclose(found, slope.sum(axis=0), rtol=1e-4, atol=1e-6)


def test_the_layers_term(mlp: ir.Model, teacher: Path, batch: tuple[np.ndarray, np.ndarray]) -> None:
    x, target = batch
    plain, hinted = exposed(graph.copy(mlp)), exposed(mlp, compress="insert-quant,insert-masks,")
    plain = graph.copy(hinted)
    pipeline.run(plain, attach(teacher))
    pipeline.run(hinted, attach(teacher, layers='{"fc*": 0.5, "fc2": 2.0}'))
    terms = 0.0
    for name, weight in (("h", 0.5), ("z", 2.0)):
        own, theirs = values(plain, [name], x, target=target)[0], values(teacher, [name], x)[0]
        terms += weight * ref.layerwise_mse(own, theirs)[0]
    with_terms, without = (engine.evaluate(one, {"x": x, "target": target})["loss"] for one in (hinted, plain))
    np.testing.assert_allclose(with_terms - without, terms, rtol=1e-4)


@pytest.mark.parametrize("loss", ["mse", "huber", "binary-cross-entropy", "cross-entropy"])
def test_any_output_can_be_compared_by_its_squares(mlp: ir.Model, teacher: Path, rng: Any, loss: str) -> None:
    x = rng.normal(0, 1.5, (BATCH, 4)).astype(np.float32)
    labels = loss == "cross-entropy"
    target = rng.integers(0, 3, BATCH) if labels else rng.integers(0, 2, (BATCH, 3)).astype(np.float32)
    plain = exposed(mlp, loss)
    mixed = graph.copy(plain)
    pipeline.run(mixed, attach(teacher, loss="mse", alpha=0.25))
    read = "z" if labels else "y"
    own, theirs = values(plain, [read], x, target=target)[0], values(teacher, [read], x)[0]
    task = engine.evaluate(plain, {"x": x, "target": target})["loss"]
    expected = 0.75 * task + 0.25 * ref.mse(own, theirs)[0]
    np.testing.assert_allclose(engine.evaluate(mixed, {"x": x, "target": target})["loss"], expected, rtol=1e-5)


def test_penalties_stay_as_they_are(mlp: ir.Model, teacher: Path, batch: tuple[np.ndarray, np.ndarray]) -> None:
    x, target = batch
    exposed(mlp, compress="insert-masks{options=threshold_decay=0.5},")
    own, theirs = values(mlp, ["z"], x, target=target)[0], values(teacher, ["z"], x)[0]
    before = engine.evaluate(mlp, {"x": x, "target": target})["loss"]
    pipeline.run(mlp, attach(teacher, alpha=0.4))
    after = engine.evaluate(mlp, {"x": x, "target": target})["loss"]
    mixed, labels = (ref.kd_loss(own, theirs, target, 4.0, alpha)[0] for alpha in (0.4, 0.0))
    assert before - labels > 1.0
    np.testing.assert_allclose(after - before, mixed - labels, rtol=1e-4)


def test_the_graph_as_text(tmp_path: Path) -> None:
    body = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Softmax (h) }"
    path = save(onnx_model(body, fc__weight=np.eye(2)), tmp_path / "t.onnx")
    model = exposed(onnx_model(body, fc__weight=np.ones((2, 2))))
    assert pipeline.run(model, attach(path))[0].changed == 1
    signature, *nodes = text_of(model).splitlines()
    assert signature == "(float[n,2] x, int64[n] target, float[4] theta) => (float[n,2] y, float loss)"
    assert [re.sub(r"(\.task|\.distilled)(\.\w+)", r"\1", node) for node in nodes][2:] == [
        "h = MatMul (x, fc.weight)",
        "y = Softmax (h)",
        "loss.replaced, loss.task, loss.task = pqc.loss.CrossEntropy (h, target)",
        "teacher.h = MatMul (x, teacher.fc.weight)",
        "loss.weighted.out = Mul (loss.replaced, loss.share)",
        "loss.distilled, loss.distilled, loss.distilled = pqc.loss.Divergence <temperature: float = 4> (h, teacher.h)",
        "loss.weighted.out_1 = Mul (loss.distilled, loss.share_1)",
        "loss = Add (loss.weighted.out, loss.weighted.out_1)",
    ]
    assert model.metadata_props["pqc.pipeline"].endswith("attach-teacher{model=t.onnx}")
    before = content(model)
    assert AttachTeacher(model=str(path)).rewrite(model) == 0
    assert content(model) == before


def test_theta_is_the_same_with_and_without_a_teacher(mlp: ir.Model, teacher: Path) -> None:
    plain = exposed(mlp, compress="insert-quant,insert-masks,")
    mixed = graph.copy(plain)
    pipeline.run(mixed, attach(teacher))
    rest = f"lower-quant,batch-parameters,fix-batch{{size={BATCH}}},differentiate,attach-optimizer"
    steps = [pipeline.run(model, rest) for model in (plain, mixed)]
    assert [step.changed for step in steps[0]] == [step.changed for step in steps[1]]
    assert layout(mixed) == layout(plain) != []
    assert np.array_equal(initializers(mixed)["theta"], initializers(plain)["theta"])
    assert [(one.name, one.shape) for one in mixed.graph.inputs] == [
        (one.name, one.shape) for one in plain.graph.inputs
    ]
    stored = {name: array for name, array in initializers(mixed).items() if name.startswith(PREFIX)}
    own = initializers(graph.load(teacher))
    assert {name.removeprefix(PREFIX) for name in stored} == own.keys()
    assert all(np.array_equal(array, own[name.removeprefix(PREFIX)]) for name, array in stored.items())
    names = [str(value.name) for value in graph.values(mixed.graph)]
    assert not [name for name in names if name.startswith(PREFIX) and name.endswith("_grad")]


@pytest.mark.parametrize("rest", ["", "lower-quant,fix-batch{size=8},differentiate,attach-optimizer"])
def test_strip_training_leaves_nothing_of_the_teacher(mlp: ir.Model, teacher: Path, rest: str) -> None:
    # With mse the network's own output is what the loss reads, so that it is still there in the step.
    plain = exposed(mlp, "mse", "insert-quant,insert-masks,")
    mixed = graph.copy(plain)
    pipeline.run(mixed, attach(teacher, loss="mse", layers='{"fc1": 1}'))
    for model in (plain, mixed):
        pipeline.run(model, f"{rest},strip-training".strip(","))
        assert model.metadata_props.keys() == {"pqc.pipeline"}
        del model.metadata_props["pqc.pipeline"]
    assert text_of(mixed) == text_of(plain)
    assert initializers(mixed).keys() == initializers(plain).keys()
    assert b"teacher" not in content(mixed)


def test_a_quantized_teacher_with_masks_and_functions_of_its_own(
    mlp: ir.Model, tmp_path: Path, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    compressed = make_mlp()
    pipeline.run(compressed, f"{NORMALIZE},insert-quant,insert-masks")
    graph.save(compressed, tmp_path / "compressed.onnx")
    proto = onnx.load(tmp_path / "compressed.onnx")
    twice = onnx.parser.parse_function('<domain: "mine", opset_import: ["" : 21]> Twice (a) => (b) { b = Add (a, a) }')
    proto.functions.append(twice)
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Twice", "mine"
    onnx.save(proto, tmp_path / "own.onnx")
    x, target = batch
    theirs = values(tmp_path / "own.onnx", ["z"], x)[0]
    exposed(mlp)
    own = values(mlp, ["z"], x, target=target)[0]
    rest = f"lower-quant,batch-parameters,fix-batch{{size={BATCH}}},differentiate"
    pipeline.run(mlp, [*attach(tmp_path / "own.onnx"), *pipeline.parse(rest)])
    assert len(layout(mlp)) == 4
    expected, _ = ref.kd_loss(own, theirs, target, 4.0, 0.7)
    np.testing.assert_allclose(engine.evaluate(mlp, {"x": x, "target": target})["loss"], expected, rtol=1e-5)
    assert "mine" not in mlp.graph.opset_imports


# Refusals, as whole text

BIG = "(float[rows,4] x) => (float[rows,5] y) { h = MatMul (x, fc1__weight) y = Softmax (h) }"
ONE = "(float[1,4] x) => (float[1,3] y) { h = MatMul (x, fc1__weight) y = Softmax (h) }"
FEW = "(float[rows,2] x) => (float[rows,3] y) { h = MatMul (x, fc1__weight) y = Softmax (h) }"
TWO = "(float[rows,4] x, float[rows,3] z) => (float[rows,3] y) { h = MatMul (x, fc1__weight) y = Add (h, z) }"
THIN = "(float[rows,4] x) => (float[rows,3] y) { h = MatMul (x, fc1__weight) y = MatMul (h, fc2__weight) }"
SAME = "\nhint: a teacher computes from the same inputs what the student computes"

MISFITS: dict[str, tuple[str, dict[str, tuple[int, int]], dict[str, object], str]] = {
    "other classes": (
        BIG,
        {"fc1__weight": (4, 5)},
        {},
        f"t.onnx: the output of the teacher is FLOAT[rows,5], and the student's is FLOAT[batch,3]{SAME}",
    ),
    "a fixed batch": (
        ONE,
        {"fc1__weight": (4, 3)},
        {},
        f"t.onnx: the input 'x' of the teacher is FLOAT[1,4], and the student's is FLOAT[batch,4]{SAME}",
    ),
    "fewer inputs": (
        FEW,
        {"fc1__weight": (2, 3)},
        {},
        f"t.onnx: the input 'x' of the teacher is FLOAT[rows,2], and the student's is FLOAT[batch,4]{SAME}",
    ),
    "an input of its own": (
        TWO,
        {"fc1__weight": (4, 3)},
        {},
        "t.onnx: the teacher's input 'z' is none of the student's: x\n"
        "hint: export the teacher with the names of the student's inputs",
    ),
    "a layer of another width": (
        THIN,
        {"fc1__weight": (4, 6), "fc2__weight": (6, 3)},
        {"layers": '{"fc1": 1}'},
        f"t.onnx: the layer 'fc1' of the teacher is FLOAT[rows,6], and the student's is FLOAT[batch,8]{SAME}",
    ),
    "no layer of the student": (
        THIN,
        {"fc1__weight": (4, 8), "fc2__weight": (8, 3)},
        {"layers": '{"fc*": 1, "head": 1}'},
        "no layer of the student is named like 'head'\nhint: its layers: fc1, fc2",
    ),
    "no layer of the teacher": (
        FEW.replace("rows,2", "rows,4"),
        {"fc1__weight": (4, 3)},
        {"layers": '{"fc2": 1}'},
        "no layer of the teacher is named like 'fc2'\nhint: its layers: fc1",
    ),
    "a layer that the teacher lacks": (
        FEW.replace("rows,2", "rows,4"),
        {"fc1__weight": (4, 3)},
        {"layers": '{"fc*": 1}'},
        "the teacher has no layer 'fc2', which a pattern of layers matches\n"
        "hint: match layers that both have, or give this one the weight 0",
    ),
    "layers that are no JSON": (
        THIN,
        {"fc1__weight": (4, 8), "fc2__weight": (8, 3)},
        {"layers": "fc1=1"},
        'layers: Expecting value: line 1 column 1 (char 0)\nhint: write JSON: {"pattern": weight}',
    ),
    "a negative weight": (
        THIN,
        {"fc1__weight": (4, 8), "fc2__weight": (8, 3)},
        {"layers": '{"fc1": -1}'},
        "layers: the weight of 'fc1' is -1\nhint: give a number from 0 on",
    ),
    "another loss": (
        THIN,
        {"fc1__weight": (4, 8), "fc2__weight": (8, 3)},
        {"loss": "klm"},
        "no distillation loss 'klm'; did you mean 'kl'?\nhint: losses: kl, mse",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_teacher_that_does_not_fit_is_refused(mlp: ir.Model, tmp_path: Path, case: str) -> None:
    body, shapes, options, text = MISFITS[case]
    path = save(onnx_model(body, **{name: np.ones(shape) for name, shape in shapes.items()}), tmp_path / "t.onnx")
    exposed(mlp)
    with pytest.raises(PqcError) as caught:
        pipeline.run(mlp, attach(path, **options))
    assert str(caught.value) == text


def test_kl_goes_with_cross_entropy_only(mlp: ir.Model, teacher: Path) -> None:
    with pytest.raises(PqcError) as caught:
        pipeline.run(exposed(mlp, "binary-cross-entropy"), attach(teacher))
    assert str(caught.value) == (
        "kl compares probabilities of classes, as cross-entropy does, not binary-cross-entropy\n"
        "hint: use loss=mse, which compares any outputs"
    )


def test_a_teacher_of_another_opset_is_refused(mlp: ir.Model, tmp_path: Path) -> None:
    graph.save(onnx_model(TEACHER, opset=17, **initializers_of(make_teacher())), tmp_path / "t.onnx")
    with pytest.raises(PqcError) as caught:
        pipeline.run(exposed(mlp), attach(tmp_path / "t.onnx"))
    assert str(caught.value) == (
        "t.onnx: the teacher has opset 17 and the student 21\nhint: run normalize on the teacher first"
    )


def initializers_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {name.replace(".", "__"): array for name, array in initializers(model).items()}


@pytest.mark.parametrize(
    ("passes", "text"),
    [
        ("attach-loss,expose-parameters,attach-teacher", "no teacher is given"),
        ("attach-teacher{model=t.onnx}", "there is no loss"),
        ("attach-loss,attach-teacher{model=t.onnx}", "what is trained has not been chosen yet"),
    ],
)
def test_the_teacher_has_its_place(mlp: ir.Model, passes: str, text: str) -> None:
    hints = {
        "no teacher is given": "name its file: attach-teacher{model=teacher.onnx}",
        "there is no loss": "run attach-loss,expose-parameters first",
        "what is trained has not been chosen yet": (
            "run expose-parameters first, or the teacher's weights would be taken for the student's"
        ),
    }
    with pytest.raises(PqcError) as caught:
        pipeline.run(mlp, f"normalize,{passes}")
    assert str(caught.value) == f"{text}\nhint: {hints[text]}"


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("temperature=0", "the temperature is a positive number, not 0"),
        ("temperature=inf", "the temperature is a positive number, not inf"),
        ("temperature=nan", "the temperature is a positive number, not nan"),
        ("alpha=1.5", "alpha is a number from 0 to 1, not 1.5"),
        ("alpha=-1", "alpha is a number from 0 to 1, not -1"),
    ],
)
def test_numbers_out_of_range_are_refused_with_a_caret(option: str, text: str) -> None:
    passes = f"attach-teacher{{{option}}}"
    with pytest.raises(PqcError) as caught:
        pipeline.parse(passes)
    caret = f"  {passes}\n  {' ' * len('attach-teacher')}^"
    assert str(caught.value).startswith(f"{text}\n{caret}\n")


# The schedule


def test_without_the_section_there_is_no_distillation() -> None:
    assert schedule.load("cs-demo").distill is None
    assert "attach-teacher" not in step_pipeline(schedule.load("cs-demo"), 8)
    plan = schedule.load("cs-demo", {"distill": "{}"})
    assert plan.distill == schedule.Distill(temperature=4.0, alpha=0.7, loss="kl", layers={}, teacher=None)


def test_the_shipped_schedule_is_the_demo_with_a_teacher() -> None:
    demo, distilled = schedule.load("cs-demo"), schedule.load("cs-distill")
    assert distilled.distill == schedule.Distill(temperature=1.0, alpha=0.3)
    assert distilled.pruning.options.pop("threshold_decay") != demo.pruning.options.pop("threshold_decay")
    other = {"name", "description", "distill"}
    assert distilled.model_dump(exclude=other) == demo.model_dump(exclude=other)
    assert distilled.fingerprint() != demo.fingerprint()


def test_the_pass_gets_what_the_schedule_says() -> None:
    plan = schedule.load("cs-demo", {"distill": '{temperature: 2, alpha: 0.5, loss: mse, layers: {"fc*": 1.5}}'})
    (one,) = (
        one for one in pipeline.parse(step_pipeline(plan, 8, Path("a b/t.onnx"))) if one.title == "attach-teacher"
    )
    assert one == AttachTeacher(model="a b/t.onnx", temperature=2.0, alpha=0.5, loss="mse", layers='{"fc*": 1.5}')


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"distill.temperature": "0"}, "'distill.temperature': Input should be greater than 0"),
        ({"distill.alpha": "1.1"}, "'distill.alpha': Input should be less than or equal to 1"),
        ({"distill.layers": "{fc1: -1}"}, "'distill.layers.fc1': Input should be greater than or equal to 0"),
        (
            {"distill.loss": "kml"},
            "'distill.loss': no distillation loss 'kml'; did you mean 'kl'?; known: kl, mse",
        ),
        (
            {"distill": "{}", "training.loss": "huber"},
            "'distill': loss 'kl' goes with training.loss cross-entropy, not huber; use mse",
        ),
        ({"distill.temprature": "3"}, "unknown key 'distill.temprature'; did you mean 'temperature'?"),
    ],
)
def test_schedule_errors(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.load("cs-demo", settings)
    assert caught.value.message == text
    assert caught.value.at is not None and caught.value.at.startswith("--set distill")
    if "unknown" in text:
        assert caught.value.hint == "known keys here: temperature, alpha, loss, layers, teacher"


# Runs


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the shipped jets."""
    folder = tmp_path_factory.mktemp("jets")
    for name in ("train", "test"):
        with np.load(TABLE["jet_tagger"].data_path() / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", x=arrays["x"][:ROWS], y=arrays["y"][:ROWS])
    return folder


TINY = {
    "training.batch": "128",
    "phases.pretraining.epochs": "1",
    "phases.training.epochs": "6",
    "phases.fine_tuning.epochs": "3",
}


def go(jets: Path, out: Path, *, resume: bool = False, listener: Any = None, **settings: str) -> dict[str, Any]:
    source = workflows.resolve("jet_tagger")
    plan = workflows.load_plan("cs-distill", source, {**TINY, **settings})
    return workflows.run(source, plan, jets, out, workflows.RunOptions(hls=False, resume=resume), listener)


def test_a_distilled_run(jets: Path, tmp_path: Path) -> None:
    summary = go(jets, tmp_path, **{"distill.layers": '{"fc[12]": 0.05}'})
    history = json.loads((tmp_path / "history.json").read_text())
    # While masks are learned they harden, and the student leaves its teacher, whom it started from.
    losses = [one["loss"] for one in history if one["stage"] == "fine-tuning"]
    assert losses[-1] < 0.95 * losses[0]
    assert summary["distilled"] == {"teacher": "the float model", "loss": "kl", **summary["float"]}
    assert summary["clean_equals_trained"]
    for name in ("compressible", "trained", "clean"):
        assert b"teacher" not in (tmp_path / f"{name}.onnx").read_bytes()
    taught = initializers(graph.load(tmp_path / "teacher.onnx"))
    given = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(given, NORMALIZE)
    assert taught.keys() == initializers(given).keys()
    assert all(np.array_equal(taught[name], array) for name, array in initializers(given).items())


def test_a_run_without_a_teacher_says_so_and_removes_an_old_one(jets: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").touch()
    assert go(jets, tmp_path, distill="null")["distilled"] is None
    assert not (tmp_path / "teacher.onnx").exists()


def test_the_evaluation_does_not_run_the_teacher(jets: Path, tmp_path: Path) -> None:
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    path = save(graph.copy(model), tmp_path / "t.onnx")
    rows = data.load(jets, model.graph, labels=True).validation
    pipeline.run(model, "legalize,insert-quant,insert-masks")
    stages = []
    for name, file in (("cs-demo", None), ("cs-distill", path)):
        plan = schedule.load(name)
        state = TrainingState(values_of(model), {})
        stages.append(Stage(model, "training", plan, plan.phases.training, state, batch=64, teacher=file))
    plain, taught = stages
    assert taught.layout == plain.layout
    assert taught.evaluate(rows).loss == plain.evaluate(rows).loss
    x, y = rows.all()
    losses = [stage.stepper.step(x, y, np.arange(64), number=1, learning_rate=1e-3) for stage in (plain, taught)]
    assert losses[0] != losses[1]
    before = {name: array.copy() for name, array in initializers(taught.step_model).items() if PREFIX in name}
    assert before and not before.keys() & set(taught.stepper.batch_arrays())
    assert all(
        np.array_equal(array, initializers(graph.load(path))[name.removeprefix(PREFIX)])
        for name, array in before.items()
    )


class Stops:
    """Interrupts a run when so many epochs are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def stage(self, name: str) -> None:
        """Nothing to do."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        if done == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 5, 9])
def test_interrupted_and_resumed_equals_uninterrupted(jets: Path, tmp_path: Path, after: int) -> None:
    go(jets, tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(jets, tmp_path / "broken", listener=Stops(after))
    go(jets, tmp_path / "broken", resume=True)
    one, two = (initializers(graph.load(tmp_path / name / "trained.onnx")) for name in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(array.tobytes() == two[name].tobytes() for name, array in one.items())


def test_another_teacher_is_another_run(jets: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    model = graph.load(TABLE["jet_tagger"].path())
    graph.save(model, path)
    settings = {"distill.teacher": str(path), "phases.training.epochs": "1", "phases.fine_tuning.epochs": "1"}
    summary = go(jets, tmp_path / "out", **settings)
    assert summary["distilled"]["teacher"] == "other.onnx"
    assert summary["distilled"]["accuracy"] == summary["float"]["accuracy"]
    go(jets, tmp_path / "out", resume=True, **settings)
    bias = layers.layers(model.graph)[-1].bias
    assert bias is not None
    graph.set_initializer(bias, graph.stored(bias) + np.float32(1e-3))
    graph.save(model, path)
    with pytest.raises(TrainingError, match="another schedule, model or data"):
        go(jets, tmp_path / "out", resume=True, **settings)


def test_a_teacher_that_is_not_there_is_refused(jets: Path, tmp_path: Path) -> None:
    with pytest.raises(PqcError) as caught:
        go(jets, tmp_path, **{"distill.teacher": "nosuch.onnx"})
    assert str(caught.value) == "no model file or reference model 'nosuch.onnx'\nhint: see `pqc list models`"
