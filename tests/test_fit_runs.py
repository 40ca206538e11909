"""`pqc fit` and the phase `fit`: from a model and data to a schedule, masks, and a network that has just these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from conftest import make_convnet, make_mlp, onnx_model
from method_networks import NETWORKS

from pqc import data, engine, graph, layer_quantizers, layers, metrics, schedule, workflows
from pqc.blocks import blocks
from pqc.errors import DataError, Interrupted, PassError, ScheduleError, SearchError, TrainingError, UsageError
from pqc.workflows.sources import Source

ATTENTION = """(float[n,3,4] x) => (float[n,3] y) {
    q = MatMul (x, q__weight) k = MatMul (x, k__weight) v = MatMul (x, v__weight)
    t = Transpose <perm: ints = [0,2,1]> (k) s = MatMul (q, t) a = Softmax <axis: int = -1> (s) h = MatMul (a, v)
    r = Add (x, h) f = Flatten (r) y = Gemm <transB: int = 1> (f, fc__weight, fc__bias) }"""
BASE: dict[str, Any] = {
    "quantization": {"weights": [1, 0, 7], "biases": [1, 0, 7], "inputs": [0, 0, 8]},
    "training": {"loss": "mse", "batch": 16, "learning_rate": 0.002},
}
FIT: dict[str, Any] = {
    "goal": {"rate": 0.08},
    "widths": [6, 4, 3],
    "prune": True,
    "sparsities": {"end": -1, "steps": 12},
    "fisher": {"batch": 8, "least": 4, "most": 6},
}


def attention() -> ir.Model:
    rng = np.random.default_rng(3)
    shapes = {"q__weight": (4, 4), "k__weight": (4, 4), "v__weight": (4, 4), "fc__weight": (3, 12), "fc__bias": (3,)}
    return onnx_model(ATTENTION, **{name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()})


MODELS = {
    **{name: network.model for name, network in NETWORKS.items()},
    "separable": make_convnet,
    "attention": attention,
}


def source(model: ir.Model, folder: Path, rows: int = 96) -> Source:
    """The model in a file, and random data that it answers, with noise."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(8)
    graph.save(model, folder / "net.onnx")
    dims = model.graph.inputs[0].shape.dims[1:]
    x = rng.normal(0, 1, (rows, *dims)).astype(np.float32)
    y = engine.evaluate(model, {"x": x})["y"]
    np.savez(folder / "data.npz", x=x, y=(y + rng.normal(0, 0.1, y.shape)).astype(np.float32))
    return Source("net", folder / "net.onnx", folder / "data.npz")


def planned(folder: Path, fit: dict[str, Any] | None = None, **sections: Any) -> schedule.Schedule:
    """A schedule file with a search."""
    content = {**BASE, **sections}
    content["phases"] = {"fit": {**FIT, **(fit or {})}, "fine_tuning": {"epochs": 1}, **sections.get("phases", {})}
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    return schedule.load(folder / "plan.yaml")


def types_of(folder: Path) -> dict[str, dict[str, str]]:
    """The types in the compressible graph of a run, as k,i,f, by layer and tensor."""
    model = graph.load(folder / "compressible.onnx")
    found: dict[str, dict[str, str]] = {}
    for layer in (*layers.layers(model.graph), *blocks(model.graph)):
        for tensor, node in layer_quantizers.quantizers(layer).items():
            grid = layers.grid(node)
            assert grid is not None
            f = -int(np.log2(float(grid.scale)))
            signed = int(grid.signed)
            found.setdefault(layer.name, {})[tensor] = f"{signed},{int(grid.bits) - signed - f},{f}"
    return found


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    """Which weights of the compressible graph of a run are left, by name."""
    arrays = graph.load(folder / "compressible.onnx").graph.initializers
    suffix = ".fixed.mask"
    return {name.removesuffix(suffix): graph.stored(arrays[name]) for name in arrays if name.endswith(suffix)}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_what_was_found_has_these_bits_and_masks(name: str, tmp_path: Path) -> None:
    net = source(MODELS[name](), tmp_path)
    plan = planned(tmp_path)
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    assert 0.02 < found["rate"] <= 0.08
    assert found["expansions"] > 3

    written = yaml.safe_load((tmp_path / "fit.yaml").read_text())
    assert "fit" not in written["phases"]
    options = workflows.RunOptions(hls=False, verify_each=True)
    summary = workflows.run(net, schedule.load(tmp_path / "fit.yaml"), None, tmp_path / "run", options)
    assert summary["clean_equals_trained"]

    types = types_of(tmp_path / "run")
    assert {one["layer"] for one in found["layers"]} <= types.keys()
    for one in found["layers"]:
        assert types[one["layer"]]["weight"] == one["type"]
        assert one["bits"] in (5, 7, 4)
    for pattern, kinds in written["quantization"]["layers"].items():
        assert {tensor: ",".join(map(str, kind)) for tensor, kind in kinds.items()}.items() <= types[pattern].items()

    stored, applied = data.read(tmp_path / "fit.masks.npz"), masks_of(tmp_path / "run")
    assert stored.keys() == applied.keys()
    for weight, mask in stored.items():
        np.testing.assert_array_equal(mask, applied[weight])
    clean = metrics.Probe(graph.load(tmp_path / "run" / "clean.onnx")).effective({})
    for weight, mask in stored.items():
        assert not np.any(clean[weight.removesuffix(".weight")][~mask]), weight


EBOPS = {"gemm": 900.0, "conv2d": 2500.0, "grouped": 2500.0, "attention": 8000.0}


@pytest.mark.parametrize("name", EBOPS)
def test_what_is_counted_is_what_the_network_has(name: str, tmp_path: Path) -> None:
    """Bit operations and weights left, as the search counts them and as they are counted in the graph."""
    net = source(MODELS[name](), tmp_path)
    plan = planned(tmp_path, {"goal": {"ebops": EBOPS[name]}})
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    workflows.train(net, schedule.load(tmp_path / "fit.yaml"), None, tmp_path / "run")
    costs = metrics.Probe(graph.load(tmp_path / "run" / "compressible.onnx")).costs({})
    assert metrics.ebops(costs) == pytest.approx(found["ebops"], rel=1e-9)
    assert metrics.keep_ratio(costs) == pytest.approx(found["keep"], rel=1e-12)
    counted = {cost.name: (cost.nonzero, cost.bits_weight) for cost in costs if cost.weight}
    assert counted == {one["layer"]: (one["nonzero"], one["bits"]) for one in found["layers"]}


def test_the_phase_finds_what_the_verb_finds(tmp_path: Path) -> None:
    net = source(make_mlp_without_head(), tmp_path)
    plan = planned(tmp_path)
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    summary = workflows.run(net, plan, None, tmp_path / "run", workflows.RunOptions(hls=False))
    assert summary["fit"]["path"] == found["path"]
    assert (tmp_path / "run" / "fit.yaml").exists()
    apart = workflows.run(
        net, schedule.load(tmp_path / "fit.yaml"), None, tmp_path / "apart", workflows.RunOptions(hls=False)
    )
    for key in ("clean", "ebops", "keep_ratio", "layers"):
        assert apart[key] == summary[key]
    assert types_of(tmp_path / "run") == types_of(tmp_path / "apart")


def make_mlp_without_head() -> ir.Model:
    return NETWORKS["gemm"].model()


def test_layers_that_are_switched_off_stay_off(tmp_path: Path) -> None:
    """One layer in float, one never pruned, and one with a type of its own."""
    net = source(attention(), tmp_path)
    quantization = {**BASE["quantization"], "exclude": ["fc"], "layers": {"q": {"weight": [1, 1, 9]}}}
    plan = planned(tmp_path, {"goal": {"keep": 0.6}}, quantization=quantization, pruning={"exclude": ["k", "q"]})
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    by_layer = {one["layer"]: one for one in found["layers"]}
    assert (by_layer["fc"]["type"], by_layer["fc"]["bits"]) == (None, 32)
    assert by_layer["q"]["bits"] == 11
    assert by_layer["v"]["bits"] < 11
    assert data.read(tmp_path / "fit.masks.npz").keys() <= {"v.weight", "fc.weight"}
    assert by_layer["q"]["nonzero"] == by_layer["q"]["weights"]
    workflows.train(net, schedule.load(tmp_path / "fit.yaml"), None, tmp_path / "run")
    types = types_of(tmp_path / "run")
    assert "fc" not in types or "weight" not in types["fc"]
    assert types["q"]["weight"] == by_layer["q"]["type"]
    assert types["v"]["weight"] == by_layer["v"]["type"]


def test_what_a_method_alone_knows_is_left_out_of_the_search(tmp_path: Path) -> None:
    """Rates of its states, and its controls."""
    net = source(NETWORKS["gemm"].model(), tmp_path)
    plan = planned(
        tmp_path,
        {"goal": {"keep": 0.7}},
        pruning={"method": "cs"},
        controls={"beta": "exp(1, 50)"},
        training={**BASE["training"], "rates": {"s": 2, "weight": 1}},
        phases={"pretraining": {"epochs": 1, "quantize": False, "rates": {"s": 0}}, "training": {"epochs": 1}},
    )
    workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    written = schedule.load(tmp_path / "fit.yaml")
    assert (written.pruning.method, written.controls, written.training.rates["s"]) == ("cs", {"beta": "exp(1, 50)"}, 2)


def test_what_enters_keeps_fractional_bits(tmp_path: Path) -> None:
    net = source(attention(), tmp_path)
    kinds = {"quantization": {**BASE["quantization"], "inputs": [0, 0, 4]}}
    fractions = {}
    for least in (0, 3):
        workflows.fit(net, planned(tmp_path, {"min_frac_bits": least}, **kinds), None, tmp_path / "fit.yaml")
        found = yaml.safe_load((tmp_path / "fit.yaml").read_text())["quantization"]["layers"]
        fractions[least] = {name: one["input"][2] for name, one in found.items() if "input" in one}
    assert min(fractions[0].values()) < 3
    assert fractions[3] == {name: max(f, 3) for name, f in fractions[0].items()}


def test_a_pruning_method_goes_on_from_the_masks(tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    sections = {"pruning": {"method": "magnitude", "options": {"sparsity": 0.8, "when": "end"}}}
    plan = planned(tmp_path, {"goal": {"keep": 0.7}}, **sections, phases={"training": {"epochs": 2}})
    summary = workflows.run(net, plan, None, tmp_path / "run", workflows.RunOptions(hls=False))
    assert summary["clean_equals_trained"]
    assert summary["keep_ratio"] <= 0.2 + 1 / summary["weights"]
    clean = metrics.Probe(graph.load(tmp_path / "run" / "clean.onnx")).effective({})
    masks = data.read(tmp_path / "run" / "fit.masks.npz")
    assert sum((~mask).sum() for mask in masks.values()) > 10
    for weight, mask in masks.items():
        assert not np.any(clean[weight.removesuffix(".weight")][~mask]), weight


def test_a_pruning_method_may_find_the_masks_itself(tmp_path: Path) -> None:
    """The share of zeros becomes its target, and no mask is written."""
    net = source(NETWORKS["gemm"].model(), tmp_path)
    sections = {"pruning": {"method": "magnitude", "options": {"when": "gradual"}}}
    plan = planned(
        tmp_path, {"goal": {"keep": 0.5}, "keep_masks": False}, **sections, phases={"training": {"epochs": 3}}
    )
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    assert found["masks"] is None
    written = schedule.load(tmp_path / "fit.yaml")
    assert written.target.sparsity == pytest.approx(1 - found["keep"], rel=1e-12)
    assert written.pruning.masks is None
    with pytest.raises(ScheduleError, match="leaves the masks to a pruning method, and there is none"):
        planned(tmp_path, {"keep_masks": False})


def test_pretraining_in_float_comes_first(tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    phases = {"pretraining": {"epochs": 2, "quantize": False}}
    plan = planned(tmp_path, phases=phases)
    summary = workflows.run(net, plan, None, tmp_path / "run", workflows.RunOptions(hls=False))
    pretrained = graph.load(tmp_path / "run" / "pretraining" / "trained.onnx")
    before = graph.load(tmp_path / "net.onnx").graph.initializers["w"].const_value.numpy()
    after = pretrained.graph.initializers["w"].const_value.numpy()
    assert not np.array_equal(after, before.T if before.shape != after.shape else before)
    assert not any(layers.is_quant(node) for node in pretrained.graph)
    start = graph.load(tmp_path / "run" / "compressible.onnx").graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(start, after)
    assert summary["epochs"] == 1
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    assert found["path"] == summary["fit"]["path"]
    assert (tmp_path / "fit.onnx").exists()


class Impatient:
    """Interrupts after so many expansions; the schedule must be there when the first stage begins."""

    def __init__(self, after: int, folder: Path) -> None:
        self.after, self.folder = after, folder

    def stage(self, name: str) -> None:
        assert any(self.folder.glob("**/schedule.yaml"))

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None: ...

    def expansion(self, words: str, done: int, share: float) -> None:
        assert 0 <= share <= 1
        if done == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_search_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    net = source(NETWORKS["conv1d"].model(), tmp_path)
    plan = planned(tmp_path)
    expected = workflows.fit(net, plan, None, tmp_path / "whole.yaml")
    with pytest.raises(Interrupted, match="stopped after 4 expansions"):
        workflows.fit(net, plan, None, tmp_path / "fit.yaml", listener=Impatient(4, tmp_path / "fit.search"))
    assert not (tmp_path / "fit.yaml").exists()
    resume = workflows.RunOptions(resume=True)
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml", resume)
    assert {**found, "schedule": "", "masks": ""} == {**expected, "schedule": "", "masks": ""}
    names = ("whole.masks.npz", "fit.masks.npz")
    masks = [{name: mask.tobytes() for name, mask in data.read(tmp_path / name).items()} for name in names]
    assert masks[0] == masks[1]
    whole, again = (yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in ("whole", "fit"))
    assert {**whole, "pruning": 0} == {**again, "pruning": 0}
    with pytest.raises(TrainingError, match="belongs to another search"):
        workflows.fit(net, planned(tmp_path, {"heuristic": 2.0}), None, tmp_path / "fit.yaml", resume)


def test_a_goal_beyond_reach_is_an_error_that_says_how_near_it_came(tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    plan = planned(tmp_path, {"goal": {"bits": 3.5}})
    with pytest.raises(SearchError) as caught:
        workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    assert str(caught.value) == (
        "phases.fit.goal: nothing meets bits=3.5: the nearest is bits=4; all that may change was changed\n"
        "hint: raise the goal, or allow more in phases.fit: fewer widths, prune, sparsities; or exclude fewer layers"
    )
    assert caught.value.exit_code == 1
    with pytest.raises(SearchError, match=r"the nearest is rate=0\.\d+; 2 expansions were made"):
        workflows.fit(net, planned(tmp_path, {"expansions": 2}), None, tmp_path / "fit.yaml")


def test_without_quantization_weights_are_only_pruned(tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    plan = planned(tmp_path, {"goal": {"keep": 0.5}, "quantize": False}, quantization=None)
    found = workflows.fit(net, plan, None, tmp_path / "fit.yaml")
    assert {one["bits"] for one in found["layers"]} == {32}
    assert 0.3 < found["keep"] <= 0.5
    summary = workflows.run(
        net, schedule.load(tmp_path / "fit.yaml"), None, tmp_path / "run", workflows.RunOptions(hls=False)
    )
    assert summary["keep_ratio"] == pytest.approx(found["keep"], rel=1e-12)


def test_activations_are_measured_where_asked_for(tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    found = workflows.fit(
        net, planned(tmp_path, {"fisher": {**FIT["fisher"], "activations": True}}), None, tmp_path / "f.yaml"
    )
    assert found["activations"].keys() == {"fc"}
    assert found["activations"]["fc"] > 0
    assert json.loads((tmp_path / "f.json").read_text()) == found


def test_a_search_needs_a_goal(tmp_path: Path) -> None:
    net = source(make_mlp(), tmp_path)
    with pytest.raises(UsageError, match="there is no goal"):
        workflows.fit(net, schedule.load("prune-only"), None, tmp_path / "fit.yaml")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"pruning": {"masks": "m.npz"}}, "a search finds masks of its own"),
        ({"training": {"batch_norm": "train"}}, "with batch normalization folded"),
        ({"quantization": None}, "a search of bit widths needs quantization"),
        ({"phases": {"pretraining": {"epochs": 3}}}, "needs quantize: false"),
    ],
)
def test_schedules_that_do_not_fit(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=words):
        planned(tmp_path, **sections)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"w": np.ones((2, 2))}, r"the mask of 'w' has the shape \[2, 2\], and the weight \[6, 8\]"),
        ({"v": np.ones((6, 8))}, "no layer has the weight 'v'"),
        ({"w": np.full((6, 8), 0.5)}, "holds more than zeros and ones"),
        (None, "no such data file"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, np.ndarray] | None, words: str, tmp_path: Path) -> None:
    net = source(NETWORKS["gemm"].model(), tmp_path)
    if masks is not None:
        np.savez(tmp_path / "m.npz", **masks)
    content = {**BASE, "pruning": {"masks": "m.npz"}, "phases": {"fine_tuning": {"epochs": 1}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises((DataError, PassError), match=words):
        workflows.train(net, schedule.load(tmp_path / "plan.yaml"), None, tmp_path / "run")
