"""Pipelines as text, their errors as whole text, and what --verify-each catches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model

from pqc import graph, pipeline
from pqc.errors import PassError, PipelineError
from pqc.fixed_point import FixedPoint
from pqc.passes.insert_masks import InsertMasks
from pqc.passes.insert_quant import InsertQuant
from pqc.passes.normalize import Normalize
from pqc.quantizer import Quantizer
from pqc.rewriting import CHANGES, EXACT, Meaning, Pass, close

ERRORS = {
    "normalise": """\
no pass 'normalise'; did you mean 'normalize'?
  normalise
  ^
hint: see `pqc list passes`""",
    "normalize, fold-batchnrm": """\
no pass 'fold-batchnrm'; did you mean 'fold-batchnorm'?
  normalize, fold-batchnrm
             ^
hint: see `pqc list passes`""",
    "qqqq": """\
no pass 'qqqq'
  qqqq
  ^
hint: see `pqc list passes`""",
    "": """\
a pass is missing
  
  ^
hint: see `pqc list passes`""",
    "normalize,,fold-masks": """\
a pass is missing
  normalize,,fold-masks
            ^
hint: see `pqc list passes`""",
    "normalize,": """\
a pass is missing
  normalize,
            ^
hint: see `pqc list passes`""",
    "insert-quant{wieghts=1,0,7}": """\
'insert-quant' has no option 'wieghts'; did you mean 'weights'?
  insert-quant{wieghts=1,0,7}
               ^
hint: it has: weights, biases, inputs, outputs, rounding, layers, exclude""",
    "normalize{size=3}": """\
'normalize' has no option 'size'
  normalize{size=3}
            ^
hint: it has no options""",
    "insert-quant{weights=1,0,7 inputs}": """\
expected option=value
  insert-quant{weights=1,0,7 inputs}
                             ^
hint: it has: weights, biases, inputs, outputs, rounding, layers, exclude""",
    "insert-quant{inputs=0,0,7 weights=1,0}": """\
'1,0' does not fit 'weights': expected k,i,f and got '1,0'
  insert-quant{inputs=0,0,7 weights=1,0}
                                    ^""",
    "insert-quant{weights=2,0,7}": """\
'2,0,7' does not fit 'weights': the sign bit k is 0 or 1, not 2
  insert-quant{weights=2,0,7}
                       ^""",
    "insert-quant{weights=1,20,20}": """\
'1,20,20' does not fit 'weights': (1,20,20) has 41 bits; 1 to 32 with one of magnitude are needed
  insert-quant{weights=1,20,20}
                       ^""",
    "insert-masks{pruning-first=yes}": """\
'yes' does not fit 'pruning-first': expected true or false
  insert-masks{pruning-first=yes}
                             ^""",
    "insert-masks{options=final_temp}": """\
'final_temp' does not fit 'options': expected name=value and got 'final_temp'
  insert-masks{options=final_temp}
                       ^""",
    "fix-batch{size=many}": """\
'many' does not fit 'size': invalid literal for int() with base 10: 'many'
  fix-batch{size=many}
                 ^""",
    "normalize,insert-quant{weights=1,0,7": """\
this brace is never closed
  normalize,insert-quant{weights=1,0,7
                        ^""",
    "insert-quant{weights=1,0,7}}": """\
a closing brace without an opening one
  insert-quant{weights=1,0,7}}
                             ^""",
    "insert-quant{weights=1,0,7} x": """\
expected a closing brace or a comma
  insert-quant{weights=1,0,7} x
                              ^""",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_point_at_the_place(text: str) -> None:
    with pytest.raises(PipelineError) as caught:
        pipeline.parse(text)
    expected = ERRORS[text]
    assert str(caught.value) == (expected if "\nhint: " in expected else f"{expected}\nhint: {PipelineError.advice}")


def test_parse_reads_names_and_options() -> None:
    text = " normalize , insert-quant{ weights=1,2,5  inputs=none exclude=head*,fc1 },insert-masks{options=final_temp=9,threshold_init=0.5 pruning-first=false}"
    assert pipeline.parse(text) == [
        Normalize(),
        InsertQuant(weights=Quantizer(FixedPoint(1, 2, 5)), inputs=None, exclude=("head*", "fc1")),
        InsertMasks(options={"final_temp": "9", "threshold_init": "0.5"}, pruning_first=False),
    ]


def test_parse_allows_a_space_after_a_brace() -> None:
    assert pipeline.parse("insert-quant{weights=1,0,7} , normalize") == [InsertQuant(), Normalize()]


def test_unparse_leaves_defaults_out() -> None:
    passes = [
        Normalize(),
        InsertQuant(weights=Quantizer(FixedPoint(1, 0, 7)), biases=None),
        InsertMasks(pruning_first=False),
    ]
    assert pipeline.unparse(passes) == "normalize,insert-quant{biases=none},insert-masks{pruning-first=false}"
    assert pipeline.unparse([InsertQuant()]) == "insert-quant"


# Running


@dataclass(frozen=True)
class Nudge(Pass):
    """Change a weight.

    The smallest step there is in the first number of each weight.
    Leaves biases alone.
    """

    title: ClassVar[str] = "nudge"
    meaning: ClassVar[Meaning] = EXACT
    by: float = 1e-6

    def rewrite(self, model: ir.Model) -> int:
        weights = [value for name, value in model.graph.initializers.items() if name.endswith("weight")]
        for value in weights:
            array = graph.stored(value).copy()
            array.flat[0] += self.by
            graph.set_initializer(value, array)
        return len(weights)


@dataclass(frozen=True)
class NudgeClose(Nudge):
    """Change a weight, and say so."""

    title: ClassVar[str] = "nudge-close"
    meaning: ClassVar[Meaning] = close(1e-3)


@dataclass(frozen=True)
class NudgeFreely(Nudge):
    """Change a weight, and say nothing of how much."""

    title: ClassVar[str] = "nudge-freely"
    meaning: ClassVar[Meaning] = CHANGES


@dataclass(frozen=True)
class RenameOutput(Nudge):
    """Change a weight and give the outputs new names."""

    title: ClassVar[str] = "rename-output"

    def rewrite(self, model: ir.Model) -> int:
        for value in model.graph.outputs:
            value.name = f"{value.name}.renamed"
        return super().rewrite(model)


@dataclass(frozen=True)
class Break(Pass):
    """Leave an invalid graph."""

    title: ClassVar[str] = "break"

    def rewrite(self, model: ir.Model) -> int:
        model.graph.node(0).name = model.graph.node(1).name
        return 1


@dataclass(frozen=True)
class Stumble(Pass):
    """Fail inside."""

    title: ClassVar[str] = "stumble"

    def rewrite(self, model: ir.Model) -> int:
        raise KeyError("lost")


def test_verify_each_catches_a_lying_pass(mlp: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.run(mlp, [Normalize(), Nudge(by=0.01)], verify_each=True)
    assert caught.value.message.startswith("'nudge' declares exact and moved an output by 0.00")
    assert caught.value.message.endswith(" of its largest magnitude")
    assert caught.value.hint == "this is a defect of the pass; report it with the model"


def test_verify_each_catches_the_last_bit(mlp: ir.Model) -> None:
    with pytest.raises(PassError, match="declares exact and moved an output"):
        pipeline.run(mlp, [Nudge(by=1e-6)], verify_each=True)


def test_verify_each_catches_a_lying_pass_that_renames_the_outputs(mlp: ir.Model) -> None:
    with pytest.raises(PassError, match="rename-output"):
        pipeline.run(mlp, [RenameOutput(by=0.5)], verify_each=True)


def test_verify_each_holds_a_bound(mlp: ir.Model) -> None:
    step = pipeline.run(mlp, [NudgeClose(by=1e-4)], verify_each=True)[0]
    assert step.difference is not None and 0 < step.difference <= 1e-3
    with pytest.raises(PassError, match=r"'nudge-close' declares close\(0.001\)"):
        pipeline.run(mlp, [NudgeClose(by=0.5)], verify_each=True)


def test_verify_each_measures_what_may_change(mlp: ir.Model) -> None:
    step = pipeline.run(mlp, [NudgeFreely(by=5.0)], verify_each=True)[0]
    assert step.difference is not None and step.difference > 0.01


def test_without_verify_each_nothing_is_measured(mlp: ir.Model) -> None:
    assert [step.difference for step in pipeline.run(mlp, [Nudge(by=0.5)])] == [None]


def test_verify_each_runs_on_the_given_feeds() -> None:
    model = onnx_model("(float[n,1] x) => (float[n,1] y) { h = Relu (x) y = MatMul (h, weight) }", weight=[[1.0]])
    quiet = {"x": np.full((4, 1), -1, np.float32)}
    assert pipeline.run(graph.copy(model), [Nudge(by=1.0)], verify_each=True, feeds=quiet)[0].difference == 0.0
    with pytest.raises(PassError):
        pipeline.run(model, [Nudge(by=1.0)], verify_each=True, feeds={"x": -quiet["x"]})


def test_verify_each_tells_not_a_number(mlp: ir.Model) -> None:
    with pytest.raises(PassError, match="moved an output by inf"):
        pipeline.run(mlp, [NudgeClose(by=float("nan"))], verify_each=True)


def test_a_pass_that_leaves_an_invalid_graph_is_named(mlp: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.run(mlp, [Break()])
    assert caught.value.message == f"'{Break.title}' left a graph in which 2 nodes are named 'Relu_a'"


def test_a_pass_that_fails_gives_a_way_to_repeat_it(mlp: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.run(mlp, [InsertQuant(biases=None), Stumble()])
    assert str(caught.value) == (
        "'stumble' failed: KeyError: 'lost'\n"
        "hint: this is a defect of pqc; report it with the model and: pqc opt -p 'insert-quant{biases=none},stumble'"
    )


def test_the_pipeline_is_stored_in_the_model(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize,insert-quant{ inputs=1,3,4 }")
    assert mlp.metadata_props["pqc.pipeline"] == "normalize,insert-quant{inputs=1,3,4}"
    pipeline.run(mlp, "insert-masks")
    text = mlp.metadata_props["pqc.pipeline"]
    assert text == "normalize,insert-quant{inputs=1,3,4},insert-masks"
    assert graph.to_proto(mlp).metadata_props[0].value == text
    assert pipeline.unparse(pipeline.parse(text)) == text


def test_steps_say_what_each_pass_did(mlp: ir.Model) -> None:
    seen = []
    steps = pipeline.run(
        mlp,
        "normalize,insert-quant{biases=none},insert-quant{biases=none}",
        after_change=lambda one, _: seen.append(one),
    )
    assert [(step.text, step.changed) for step in steps[1:]] == [
        ("insert-quant{biases=none}", 4),
        ("insert-quant{biases=none}", 0),
    ]
    assert seen[-1] == InsertQuant(biases=None)
    assert len(seen) == sum(step.changed > 0 for step in steps)
