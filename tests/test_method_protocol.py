"""What holds for every pruning method: protocol, layers, sharing, exact counts, resuming, and a method of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from method_networks import (
    NETWORKS,
    TRAINABLE,
    Arrays,
    Impatient,
    Training,
    effective,
    feeds_of,
    hard,
    inserted,
    plan,
    same_run,
    trainer_of,
    with_options,
)
from toy_method import SameSignMethod

import reference_pruning as prune
from pqc import engine, graph, library, masking, pipeline, workflows
from pqc.errors import Interrupted, PassError
from pqc.functions.ranking import KeepLargest
from pqc.methods import TABLE, make
from pqc.training.budget import prune_counts, ranked
from pqc.training.events import Events
from pqc.training.stages import values_of
from pqc.training.trainer import Trainer
from pqc.workflows.compression import finalize

OPTIONS: dict[str, list[dict[str, object]]] = {
    "magnitude": [
        {},
        {"when": "start", "scope": "layer"},
        {"when": "end"},
        {"structure": "output"},
        {"structure": "input"},
        {"pattern": "2:4"},
    ],
    "activation_pruning": [{"batches": 2}, {"batches": 2, "sparsity": 0.5}],
    "autosparse": [
        {},
        {"threshold_type": "layerwise", "backward_sparsity": True},
        {"threshold_type": "weightwise", "pressure": 0.01},
        {"shrink": True, "threshold_init": -1},
    ],
    "cs": [{}, {"threshold_decay": 1e-3, "threshold_init": 0.1}],
    "dst": [{"threshold_type": kind} for kind in ("layerwise", "channelwise", "weightwise")],
    "mdmm": [{}, {"metric": "StructuredSparsity", "l0_mode": "smooth", "rf": 2}],
    "pdp": [
        {"epsilon": 0.5},
        {"epsilon": 1, "structure": "output"},
        {"epsilon": 1, "structure": "input", "scope": "layer"},
        {"pattern": "2:4"},
    ],
    "wanda": [{"batches": 3}, {"batches": 3, "pattern": "1:2"}, {"batches": 5, "scope": "layer"}],
}
SETS = [pytest.param(method, options, id=f"{method} {options}") for method in OPTIONS for options in OPTIONS[method]]
# Every option set on a layer of its own.
PLACES = [
    pytest.param(method, options, TRAINABLE[number % len(TRAINABLE)], id=f"{method} {options}")
    for number, (method, options) in enumerate((method, options) for method in OPTIONS for options in OPTIONS[method])
]


def test_every_method_is_here() -> None:
    assert OPTIONS.keys() == TABLE.keys()


def test_a_gradient_reads_only_attributes_that_its_forward_node_carries() -> None:
    bodies = library.bodies()
    for key, operator in library.operators().items():
        if operator.gradient is None:
            continue
        forward, backward = (
            {one.name for one in body.attribute_proto} | set(body.attribute)
            for body in (bodies[key], bodies[operator.gradient.opset.domain, operator.gradient.name])
        )
        assert backward <= forward, key


@pytest.mark.parametrize(("method", "options"), SETS)
def test_the_mask_takes_every_state_and_control(method: str, options: dict[str, object]) -> None:
    made = make(method, options)
    states = {state.name for state in made.states()}
    assert set(made.mask().reads) - {"weight"} == states | made.controls().keys()
    observed = {"weight", "mask", "input", "output"}
    for call in made.calls():
        assert set(call.reads) <= states | made.controls().keys() | observed
        assert {name for name in call.sets if name} <= states
        assert call.operator in made.operators
    assert not any({"input", "output"} & set(call.reads) for call in made.calls() if call != made.update())
    assert (made.budget() is None) or "prune" in states


@pytest.mark.parametrize(("method", "options"), SETS)
def test_options_survive_in_the_graph(method: str, options: dict[str, object]) -> None:
    model = NETWORKS["gemm"].model()
    pipeline.run(model, f"normalize,{inserted(method, options)}")
    again = graph.from_proto(graph.to_proto(model))
    sites = list(masking.masks(again.graph))
    assert sites and all(site.method == make(method, options) for site in sites)
    assert {field.name for field in fields(sites[0].method)} == {field.name for field in fields(TABLE[method])}


# Training, from one end to the other


def assert_clean_equals_trained(trainer: Trainer, trained: ir.Model) -> ir.Model:
    clean, _ = finalize(trained, verify_each=False)
    assert {node.domain for node in clean.graph} <= {"", graph.QONNX} and not clean.functions
    pair = [workflows.checks.outputs(model, trainer.data.test) for model in (trained, clean)]
    np.testing.assert_array_equal(*pair)
    return clean


@pytest.mark.parametrize(("method", "options", "name"), PLACES)
def test_trains_hardens_and_ends_clean(method: str, options: dict[str, object], name: str, tmp_path: Path) -> None:
    trainer = trainer_of(NETWORKS[name].model(), plan(method, options), tmp_path)
    start = {key: array.copy() for key, array in trainer.state.values.items()}
    trained = trainer.train()
    assert [record["stage"] for record in trainer.state.history] == ["training"] * 2
    for key, array in trainer.state.values.items():
        assert array.shape == start[key].shape and np.isfinite(array).all(), key
    assert not np.array_equal(start["w"], trainer.state.values["w"])
    left_alone = trainer.method is not None and trainer.method.cuts_outputs
    assert trainer.state.masks.keys() == {"w"} | (set() if left_alone else {"fc.weight"})
    for key, mask in trainer.state.masks.items():
        assert mask.shape == start[key].shape and set(np.unique(mask)) <= {0, 1}
    clean = assert_clean_equals_trained(trainer, trained)
    weight = initializers(clean)["w"]
    assert not np.any(weight[trainer.state.masks["w"] == 0])


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("name", TRAINABLE)
def test_steps_on_every_layer(method: str, name: str) -> None:
    model = NETWORKS[name].model()
    options = OPTIONS[method][-2 if method == "pdp" else 0]
    pipeline.run(model, f"normalize,legalize,insert-quant{{weights=1,1,5 inputs=1,2,4}},{inserted(method, options)}")
    training, events = Training(model), Events(model)
    values = training.values()
    start = {key: array.copy() for key, array in values.items()}
    events.begin_training(values, {})
    events.begin_epoch(values, {})
    training.load(values)
    for number in range(3):
        feeds = feeds_of(model, 4, seed=number)
        training.step({"x": feeds["x"]}, feeds["target"])
    values = training.values()
    events.end_epoch(values, {})
    assert {key: array.shape for key, array in values.items()} == {key: array.shape for key, array in start.items()}
    assert all(np.isfinite(array).all() for array in values.values())
    assert not np.array_equal(values["w"], start["w"])
    masks, _ = events.harden(values, {}, None)
    assert masks["w"].shape == NETWORKS[name].shape and set(np.unique(masks["w"])) <= {0, 1}


@pytest.mark.parametrize("method", [method for method in OPTIONS if method != "activation_pruning"])
@pytest.mark.parametrize("name", ["transpose", "grouped transpose"])
def test_transposed_convolutions_get_masks_although_they_are_not_trained(method: str, name: str) -> None:
    for options in OPTIONS[method]:
        model = NETWORKS[name].model()
        pipeline.run(model, f"normalize,insert-quant{{weights=1,1,5}},{inserted(method, options)}")
        events, values = Events(model), values_of(model)
        for event in (events.begin_training, events.begin_epoch, events.end_epoch, events.end_round):
            event(values, {})
        masks, _ = events.harden(values, {}, None)
        assert masks["w"].shape == NETWORKS[name].shape and set(np.unique(masks["w"])) <= {0, 1}


def test_rank_three_inputs_count_positions_as_rows() -> None:
    """The same numbers as the flat layer on samples times positions."""
    found = []
    for name, shape in (("matmul", (8, 6)), ("positions", (2, 4, 6))):
        model = NETWORKS[name].model()
        pipeline.run(model, f"normalize,{inserted('wanda', {'batches': 1}, more={'exclude': 'fc'})}")
        training = Training(model, batch=shape[0])
        x = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
        training.step({"x": x}, np.zeros((shape[0], 3), np.float32))
        found.append(training.values()["w.squares"])
        assert found[-1].shape == (6,)
    # rtol: a float32 sum of eight squares in either order.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


# Weights with two readers

SHARED = """(float[n,6] x, float[n,6] z) => (float[n,8] y) {
    a = MatMul (x, w) b = MatMul (z, w) c = Relu (a) d = Relu (b) s = Add (c, d) y = MatMul (s, v) }"""


def shared() -> ir.Model:
    rng = np.random.default_rng(4)
    return onnx_model(SHARED, w=rng.normal(0, 0.5, (6, 8)), v=rng.normal(0, 0.5, (8, 8)))


def two_inputs(rows: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    scales = {"x": 1.0, "z": 3.0}
    return {name: rng.normal(0, scale, (rows, 6)).astype(np.float32) for name, scale in scales.items()}


def test_a_shared_weight_has_one_mask_and_statistics_of_all_its_readers() -> None:
    for method, state in (("wanda", "squares"), ("activation_pruning", "activity")):
        model = shared()
        pipeline.run(model, f"normalize,{inserted(method, {'batches': 1})}")
        assert [site.weight.name for site in masking.masks(model.graph)].count("w") == 1
        weight = initializers(model)["w"]
        training = Training(model)
        inputs = two_inputs(4, seed=1)
        training.step(inputs, np.zeros((4, 8), np.float32), learning_rate=0.0)
        both = np.concatenate([inputs["x"], inputs["z"]])
        wanted = prune.wanda_collect([both]) if method == "wanda" else prune.ap_activity(both @ weight)
        np.testing.assert_allclose(training.values()[f"w.{state}"], wanted, rtol=1e-6)


@pytest.mark.parametrize("method", OPTIONS)
def test_shared_weights_and_masks_behind_quantizers_end_clean(method: str, tmp_path: Path) -> None:
    options = OPTIONS[method][0]
    schedule = plan(method, options, pruning={"method": method, "options": options, "pruning_first": False})
    trainer = trainer_of(shared(), schedule, tmp_path)
    assert_clean_equals_trained(trainer, trainer.train())


# Which weights, and with which options


@pytest.mark.parametrize("first", [True, False])
def test_thresholds_see_rounded_weights_behind_quantizers(first: bool) -> None:
    weight = np.array([[0.30, 0.20, 0.45, 0.04], [-0.38, -0.30, 0.0, -0.1]], np.float32)
    model = onnx_model("(float[n,4] x) => (float[n,2] y) { y = MatMul (x, w) }", w=weight.T)
    text = "normalize,insert-quant{weights=1,0,2 inputs=none}," + inserted("dst", {"threshold_init": 0.26}, first=first)
    pipeline.run(model, text)
    rounded = np.rint(weight * 4) / 4
    seen = weight if first else rounded
    mask = prune.dst_mask(seen, np.full((2, 1), 0.26))
    assert not np.array_equal(prune.dst_mask(weight, 0.26), prune.dst_mask(rounded, 0.26))
    np.testing.assert_array_equal(effective(model).T, (weight if first else rounded) * mask)
    np.testing.assert_array_equal(hard(model)["w"].T, mask)


def test_excluded_layers_have_no_mask(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize,insert-masks{method=dst exclude=*2}")
    assert [name for name in initializers(mlp) if name.endswith(".threshold")] == ["fc1.weight.threshold"]


def test_options_for_some_layers(mlp: ir.Model) -> None:
    layers = {"fc1": {"sparsity": 0.25}, "*2": {"sparsity": 0.75, "structure": "input"}}
    pipeline.run(mlp, "normalize," + with_options("magnitude", {"when": "start", "scope": "layer"}, layers))
    events, values = Events(mlp), values_of(mlp)
    events.begin_training(values, {})
    masks, _ = events.harden(values, {}, None)
    assert masks["fc1.weight"].sum() == 24
    np.testing.assert_array_equal(masks["fc2.weight"].any(axis=1), masks["fc2.weight"].all(axis=1))
    assert masks["fc2.weight"].sum() == 2 * 3


def test_layers_with_other_shares_of_a_global_scope_are_ranked_by_themselves(mlp: ir.Model) -> None:
    text = with_options("magnitude", {"when": "start", "sparsity": 0.5}, {"fc2": {"sparsity": 0.25}})
    pipeline.run(mlp, f"normalize,{text}")
    values = values_of(mlp)
    Events(mlp).begin_training(values, {})
    assert (values["fc1.weight.prune"], values["fc2.weight.prune"]) == (16, 6)


def test_a_curve_cannot_differ_between_layers(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize")
    with pytest.raises(PassError, match="'fc2' changes an option that sets a curve"):
        pipeline.run(mlp, with_options("dst", {}, {"fc2": {"alpha": 1e-3}}))


# Exact counts

shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0, 1 - 1e-9]))
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(sizes, shares, st.integers(0, 3), st.integers(0, 2**16))
@example([25], 0.9, 0, 0)
@example([5], 0.5, 0, 0)
@settings(max_examples=300)
def test_budgets_are_exact_to_one_weight(numbers: list[int], share: float, levels: int, seed: int) -> None:
    """Against the reference, with few levels of score so that many are equal; none means that all are."""
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 10**levels, number).astype(np.float32) for number in numbers]
    counts = prune_counts(scores, numbers, share, together=True)
    assert counts == prune.allocate(scores, share)
    assert sum(counts) == round(share * sum(numbers))
    assert prune_counts(scores, numbers, share, together=False) == [round(share * number) for number in numbers]
    kept = np.concatenate(ranked(scores, numbers, share))
    flat = np.concatenate(scores)
    np.testing.assert_array_equal(kept, prune.topk_mask(flat, flat.size - round(share * flat.size)))


units = st.lists(st.tuples(st.integers(1, 8), st.integers(2, 30)), min_size=1, max_size=4)


@given(units, shares, st.integers(0, 2**16))
@settings(max_examples=200)
def test_budgets_of_whole_units_are_exact_to_half_a_unit(
    layers: list[tuple[int, int]], share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.normal(0, 1, count).astype(np.float32) for count, _ in layers]
    weights = [count * size for count, size in layers]
    for together in (True, False):
        counts = prune_counts(scores, weights, share, together=together)
        assert all(0 <= count < score.size for count, score in zip(counts, scores, strict=True)), "one unit stays"
        pruned = sum(count * size for count, (_, size) in zip(counts, layers, strict=True))
        wanted, most = share * sum(weights), sum((count - 1) * size for count, size in layers)
        if together and wanted <= most:
            assert abs(pruned - round(wanted)) <= max(size for _, size in layers)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 2), st.integers(0, 2**16))
@settings(max_examples=60)
def test_the_graph_keeps_the_largest_and_of_equal_ones_the_earlier(
    size: int, count: int, levels: int, seed: int
) -> None:
    score = np.random.default_rng(seed).integers(0, 10**levels, size).astype(np.float32)
    pruned = min(count, size)
    body = library.bodies()["pqc.ranking", KeepLargest.name]
    found = engine.call(body, [score, np.float32(pruned)], {})[0]
    np.testing.assert_array_equal(found, prune.topk_mask(score, size - pruned))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.85, 0.999])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(
    ("method", "extra"), [("magnitude", {"when": "start"}), ("magnitude", {"when": "end"}), ("pdp", {"epsilon": 1})]
)
def test_ranked_masks_are_exact_through_the_graph(
    method: str, extra: dict[str, object], equal: bool, share: float, scope: str
) -> None:
    rng = np.random.default_rng(9)
    arrays = [np.full(shape, 0.5) if equal else rng.normal(0, 1, shape) for shape in ((7, 9), (9, 5))]
    model = onnx_model(
        "(float[n,7] x) => (float[n,5] y) { h = MatMul (x, a) y = MatMul (h, b) }", a=arrays[0], b=arrays[1]
    )
    pipeline.run(model, f"normalize,{inserted(method, {**extra, 'sparsity': share, 'scope': scope})}")
    events, values = Events(model), values_of(model)
    events.begin_training(values, {"ramp": 1.0})
    masks, _ = events.harden(values, {"ramp": 1.0}, None)
    pruned = [int((masks[name] == 0).sum()) for name in ("a", "b")]
    if scope == "layer":
        assert pruned == [round(share * 63), round(share * 45)]
    assert sum(pruned) == (round(share * 63) + round(share * 45) if scope == "layer" else round(share * 108))


def test_of_equal_weights_those_of_the_earlier_layer_stay() -> None:
    text = "(float[n,4] x) => (float[n,4] y) { h = MatMul (x, a) y = MatMul (h, b) }"
    model = onnx_model(text, a=np.ones((4, 4)), b=np.ones((4, 4)))
    pipeline.run(model, f"normalize,{inserted('magnitude', {'when': 'start', 'sparsity': 0.25})}")
    values = values_of(model)
    Events(model).begin_training(values, {})
    assert (values["a.prune"], values["b.prune"]) == (0, 8)


@pytest.mark.parametrize("method", ["magnitude", "pdp"])
def test_a_target_holds_where_training_ends_before_its_ramp(method: str, tmp_path: Path) -> None:
    """PDP's ramp takes 67 epochs, and early stopping may end any."""
    phases = {"training": {"epochs": 9, "early_stopping": {"patience": 1, "min_delta": 100}}}
    trainer = trainer_of(NETWORKS["gemm"].model(), plan(method, target={"sparsity": 0.75}, phases=phases), tmp_path)
    trainer.train()
    assert len(trainer.state.history) == 2 and trainer.state.history[-1]["ramp"] < 1
    kept = sum(int(mask.sum()) for mask in trainer.state.masks.values())
    assert kept == 72 - 54


@pytest.mark.parametrize("method", ["magnitude", "pdp", "wanda"])
def test_a_pattern_takes_no_target(method: str) -> None:
    with pytest.raises(ValueError, match="the pattern 2:4 says how much remains"):
        plan(method, {"pattern": "2:4"}, target={"sparsity": 0.5})


def test_a_target_leaves_the_pattern_of_a_layer_alone(mlp: ir.Model) -> None:
    text = with_options("magnitude", {"when": "start", "sparsity": 0.75}, {"fc1": {"pattern": "2:4"}})
    pipeline.run(mlp, f"normalize,{text}")
    events, values = Events(mlp), values_of(mlp)
    events.begin_training(values, {})
    masks, _ = events.harden(values, {}, 0.75)
    np.testing.assert_array_equal(masks["fc1.weight"], prune.nm_mask(initializers(mlp)["fc1.weight"], 2, 4))
    assert masks["fc2.weight"].sum() == 6


# Resuming


RESUMED = {
    "wanda": plan("wanda", {"batches": 6}, phases={"training": {"epochs": 3}, "fine_tuning": {"epochs": 1}}),
    "dst": plan("dst", {}, target={"sparsity": 0.6}, phases={"training": {"epochs": 2}, "fine_tuning": {"epochs": 1}}),
}


@pytest.mark.parametrize("method", RESUMED)
def test_resumed_after_any_epoch_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    schedule = RESUMED[method]

    def start(folder: str) -> Trainer:
        return trainer_of(NETWORKS["conv1d"].model(), schedule, tmp_path / folder)

    whole = start("whole")
    whole.train()
    total = whole.total_epochs()
    for epoch in range(1, total + 1):
        broken = start(f"broken{epoch}")
        broken.progress = Impatient(epoch)
        with pytest.raises(Interrupted):
            broken.train()
        again = start(f"broken{epoch}")
        again.resume()
        again.train()
        same_run(whole, again)


# A method of one's own


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The toy method in the table."""
    monkeypatch.setitem(TABLE, SameSignMethod.title, SameSignMethod)
    yield SameSignMethod.title
    monkeypatch.undo()
    assert SameSignMethod.title not in TABLE and ("pqc.mask", "SameSign") not in library.operators()


def test_a_method_needs_a_file_a_line_in_the_table_and_a_schedule(toy: str, tmp_path: Path) -> None:
    schedule = plan(toy, {"final": 50}, 6, phases={"training": {"epochs": 6}, "fine_tuning": {"epochs": 2}})
    network = NETWORKS["conv2d"]
    trainer = trainer_of(network.model(), schedule, tmp_path)
    first = np.sign(trainer.state.values["w"])
    trained = trainer.train()
    hardness = [record["hardness"] for record in trainer.state.history[:6]]
    np.testing.assert_allclose(hardness, [50 ** (n / 5) for n in range(6)])
    np.testing.assert_array_equal(trainer.state.values["w.first"], first)
    dropped = sum(int((mask == 0).sum()) for mask in trainer.state.masks.values())
    assert 0 < dropped < 50, "some weights have crossed zero"
    assert_clean_equals_trained(trainer, trained)


def test_the_toys_gradient_is_the_engines(toy: str) -> None:
    weight = np.random.default_rng(2).normal(0, 0.5, (3, 4)).astype(np.float32)
    model = onnx_model("(float[n,3] x) => (float[n,4] y) { y = MatMul (x, w) }", w=weight)
    pipeline.run(model, f"normalize,{inserted(toy)}")
    training = Training(model, batch=2, optimizer="sgd")
    feeds = feeds_of(model, 2)
    training.step({"x": feeds["x"]}, feeds["target"], learning_rate=1.0)
    values = training.values()
    x, W = feeds["x"].astype(float), weight.astype(float)
    mask = 1 / (1 + np.exp(-np.abs(W)))
    dy = 2 * (x @ (W * mask) - feeds["target"]) / 8
    g = x.T @ dy
    expected = g * mask + g * W * mask * (1 - mask) * np.sign(W)
    # rtol, atol: a step of one in float32.
    np.testing.assert_allclose(weight - values["w"], expected, rtol=1e-5, atol=1e-6)


def test_the_toy_is_cut_to_a_target(toy: str, tmp_path: Path) -> None:
    trainer = trainer_of(NETWORKS["gemm"].model(), plan(toy, {}, target={"sparsity": 0.5}), tmp_path)
    trainer.train()
    total = sum(mask.size for mask in trainer.state.masks.values())
    assert sum(int(mask.sum()) for mask in trainer.state.masks.values()) == total - round(0.5 * total)
