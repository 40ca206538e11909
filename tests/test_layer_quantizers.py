"""Quantizers of single layers: in the pass, in schedules, and in `pqc schedule`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_mlp, onnx_model

from pqc import graph, layers, pipeline, schedule
from pqc.errors import PassError, ScheduleError
from pqc.options import quote
from pqc.quantizer import Quantizer
from pqc.workflows import schedules
from pqc.workflows.compression import NORMALIZE, compress_pipeline

TWO = "(float[n,4] x) => (float[n,4] y) { a = MatMul (x, fc1__weight) b = MatMul (x, fc2__weight) y = Add (a, b) }"
CHAIN = "(float[n,4] x) => (float[n,4] y) { a = MatMul (x, fc1__weight) y = MatMul (a, fc2__weight) }"


def quantized(text: str, own: dict[str, Any], options: str = "") -> dict[str, str]:
    """What each tensor is rounded to: k,i,f and its overflow."""
    model = onnx_model(text, fc1__weight=np.eye(4), fc2__weight=np.eye(4))
    pipeline.run(model, f"normalize,insert-quant{{layers={quote(json.dumps(own))} {options}}}")
    found = {}
    for node in model.graph:
        if layers.is_quant(node):
            grid = layers.grid(node)
            assert grid is not None
            f, k = int(-np.log2(grid.scale.flat[0])), int(grid.signed)
            kind = f"{k},{int(grid.bits.flat[0]) - k - f},{f}"
            found[str(node.name).removesuffix(".quant")] = kind + (
                "" if grid.overflow == "SAT" else f"/{grid.overflow}"
            )
    return found


def test_what_a_layer_says_holds_for_it_alone() -> None:
    found = quantized(CHAIN, {"fc1": {"weight": "1,0,3", "output": "1,4,4"}, "fc2": {"weight": None}})
    assert found == {"x": "0,0,7", "fc1.weight": "1,0,3", "a": "1,4,4"}


def test_the_last_pattern_that_matches_holds() -> None:
    found = quantized(CHAIN, {"*": {"weight": "1,0,3"}, "fc2": {"weight": "1,0,1/WRAP"}})
    assert (found["fc1.weight"], found["fc2.weight"]) == ("1,0,3", "1,0,1/WRAP")


def test_layers_that_agree_share_a_quantizer() -> None:
    found = quantized(TWO, {"fc*": {"input": "1,2,3"}})
    assert found["x"] == "1,2,3"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"fc1": {"input": "1,2,3"}}, "1,2,3 and as 0,0,7"),
        ({"fc1": {"input": "1,2,3"}, "fc2": {"input": "1,2,4"}}, "1,2,3 and as 1,2,4"),
        ({"fc2": {"input": None}}, "0,0,7 and as float"),
    ],
)
def test_an_activation_is_not_rounded_in_two_ways(own: dict[str, Any], words: str) -> None:
    with pytest.raises(PassError) as caught:
        quantized(TWO, own)
    assert str(caught.value).startswith(
        f"tensor 'x': the layers 'fc1' and 'fc2' read it, and they would round it as {words}\n"
        "hint: say the same of both; one quantizer serves all that read an activation"
    )


def test_an_excluded_layer_has_no_say() -> None:
    assert quantized(TWO, {"fc1": {"input": "1,2,3"}}, "exclude=fc2")["x"] == "1,2,3"


def test_what_leaves_a_layer_and_enters_the_next_is_one() -> None:
    both = {"fc1": {"output": "1,4,4"}, "fc2": {"input": "1,4,4"}}
    assert quantized(CHAIN, both)["a"] == "1,4,4"
    with pytest.raises(
        PassError, match="tensor 'a': one layer gives it out and another reads it, and they would round"
    ):
        quantized(CHAIN, both | {"fc2": {"input": "1,3,4"}})


def test_a_table_takes_what_a_layer_beside_it_says() -> None:
    text = """(float[n,4] x) => (float[n,4] y) {
        t = Tanh (x) a = MatMul (x, fc1__weight) b = MatMul (t, fc2__weight) y = Add (a, b) }"""
    assert quantized(text, {"fc1": {"input": "1,2,3"}})["x"] == "1,2,3"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"fc3": {"weight": "1,0,3"}}, "no layer is named like 'fc3'"),
        ({"fc1": {"wieght": "1,0,3"}}, "'wieght' is not one of weight, bias, input, output"),
        ({"fc1": {"weight": "1,0"}}, "expected k,i,f and got '1,0'"),
        ({"fc1": {"weight": "1,0,3/WARP"}}, "'WARP' says nothing about a quantizer; did you mean 'WRAP'?"),
        ({"fc1": ["weight"]}, "layers: "),
        ([], "layers: "),
    ],
)
def test_wrong_options_are_refused(own: Any, message: str) -> None:
    with pytest.raises(PassError) as caught:
        quantized(CHAIN, own)
    assert message in str(caught.value)


# Schedules

FILE = """\
name: s
quantization:
  weights: {bits: [1, 0, 5], overflow: SAT_SYM, granularity: per_channel}
  layers:
    fc1:
      weight: {bits: [1, 0, 3]}
      input: {bits: [0, 2, 6]}
    "fc*":
      output: null
      bias: {overflow: WRAP}
"""


def test_partial_mappings_stand_on_the_section(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(FILE)
    plan = schedule.load(tmp_path / "s.yaml")
    assert plan.quantization is not None
    assert plan.quantization.overrides() == {
        "fc1": {"weight": Quantizer.parse("1,0,3/per_channel/SAT_SYM"), "input": Quantizer.parse("0,2,6")},
        "fc*": {"output": None, "bias": Quantizer.parse("1,0,7/WRAP")},
    }
    (tmp_path / "again.yaml").write_text(plan.text())
    assert schedule.load(tmp_path / "again.yaml") == plan
    model = make_mlp()
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)}")
    assert np.asarray(graph.constant(model.graph.initializers["fc1.weight.quant.bitwidth"])).flat[0] == 4
    shown = schedules.show(tmp_path / "s.yaml").content["quantization"]["layers"]
    assert shown["fc1"]["weight"] == {"bits": [1, 0, 3]}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("weight: {bits: [1, 0, 3]}", "wieght: null", 6, "'fc1': wieght: no tensor 'wieght'; did you mean 'weight'?"),
        ("{bits: [1, 0, 3]}", "[1, 0]", 6, "'fc1': weight: bits are three integers: [k, i, f], or binary or ternary"),
        ("{bits: [0, 2, 6]}", "{bist: [0, 2, 6]}", 7, "'fc1': input: a quantizer has no 'bist'; did you mean 'bits'?"),
        ("overflow: WRAP", "overflow: WARP", 10, "'fc*': bias: no overflow 'WARP'; did you mean 'WRAP'?"),
        ("{overflow: WRAP}", "{learns: bits, overflow: WRAP}", 10, "'fc*': bias: integer bits have no gradient"),
        ("output: null", "output: {overflow: SAT}", 9, "'fc*': output: a quantizer needs bits"),
    ],
)
def test_errors_have_the_line_of_their_key(old: str, new: str, line: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ScheduleError) as caught:
        schedule.load(path)
    assert caught.value.at == f"{path}:{line}"
    assert message in caught.value.message
    assert schedules.check(path).record()["error"]["at"] == f"{path}:{line}"


def test_settings_reach_a_layer(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(FILE)
    settings = {
        "quantization.layers.fc1.weight.bits": "[1, 1, 1]",
        "quantization.layers.fc2": "{weight: {granularity: per_weight}}",
        "quantization.layers.fc*.output": "[1, 2, 3]",
    }
    plan = schedule.load(tmp_path / "s.yaml", settings)
    assert plan.quantization is not None
    found = plan.quantization.overrides()
    assert str(found["fc1"]["weight"]) == "1,1,1/per_channel/SAT_SYM"
    assert str(found["fc2"]["weight"]) == "1,0,5/per_weight/SAT_SYM"
    assert str(found["fc*"]["output"]) == "1,2,3"
    dotted = {"quantization.layers": '{"block.0.fc": {weight: [1, 0, 2]}}'}
    plan = schedule.load(tmp_path / "s.yaml", dotted)
    assert plan.quantization is not None and list(plan.quantization.overrides()) == ["block.0.fc"]
    with pytest.raises(ScheduleError) as caught:
        schedule.load(tmp_path / "s.yaml", {"quantization.layers.fc1.weight.overflow": "WARP"})
    assert caught.value.at == "--set quantization.layers.fc1.weight.overflow"


# What wraps


@pytest.mark.parametrize(
    ("quantization", "key"),
    [
        ("{calibrate: false, inputs: {bits: [1, 2, 5], overflow: WRAP}}", "inputs"),
        ("{calibration: null, outputs: {bits: [1, 2, 5], overflow: WRAP_SM}}", "outputs"),
        ("{calibrate: false, layers: {fc1: {output: {bits: [1, 2, 5], overflow: WRAP}}}}", "layers.fc1.output"),
        ("{calibrate: true, inputs: {bits: [1, 2, 5], overflow: WRAP}}", None),
        ("{calibrate: false, inputs: {bits: [1, 2, 5], overflow: WRAP, learns: fractional_bits}}", None),
        ("{calibrate: false, weights: {bits: [1, 2, 5], overflow: WRAP}}", None),
        ("{calibrate: false, inputs: {bits: [1, 2, 5], overflow: SAT_SYM}}", None),
    ],
)
def test_what_wraps_unseen_is_warned_about(quantization: str, key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nquantization: {quantization}\n")
    notes = schedules.check(path).notes
    assert [note.key for note in notes] == ([f"quantization.{key}"] if key else [])
    if key:
        assert notes[0].at == f"{path}:2"
        assert "wraps" in notes[0].text and "calibrate" in notes[0].text


def test_settings_are_warned_about_too(tmp_path: Path) -> None:
    settings = {"quantization.inputs": "{bits: [1, 2, 5], overflow: WRAP}", "quantization.calibrate": "false"}
    (note,) = schedules.check("quantize-only", settings).notes
    assert note.at == "--set quantization.inputs"
