from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, layers, library
from pqc.errors import PassError
from pqc.functions.losses import DISTILLATION, LOSSES
from pqc.names import TARGET, TEACHER, THETA
from pqc.options import nearest
from pqc.passes.attach_loss import logits, scalar
from pqc.passes.strip_training import StripTraining
from pqc.rewriting import CHANGES, Meaning, Pass, explain
from pqc.shapes import infer_shapes
from pqc.teacher import Pair, check, graft, load

NAMES = {operator.key: name for name, operator in LOSSES.items()}


@dataclass(frozen=True)
class AttachTeacher(Pass):
    """Let a frozen network, the teacher, take part in the loss.

    L(y, target) → (1 - alpha) L(y, target) + alpha D(y, y of the teacher), where the teacher is the file `model`,
    copied to the same inputs under names teacher.…, and D is `kl`: T² KL(softmax(teacher / T) || softmax(y / T)) at
    the `temperature` T, or `mse`. `layers`, as JSON {"pattern": weight}, adds mean squared errors of layers' outputs.
    Leaves penalties as they are, and a graph that has a teacher. It comes after expose-parameters: what is trained
    has been chosen by then, and the teacher's weights are constants like any other.
    """

    title: ClassVar[str] = "attach-teacher"
    meaning: ClassVar[Meaning] = CHANGES

    model: str = ""
    temperature: float = 4.0
    alpha: float = 0.7
    loss: str = "kl"
    layers: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature is a positive number, not {self.temperature:g}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a number from 0 to 1, not {self.alpha:g}")

    def rewrite(self, model: ir.Model) -> int:
        if TEACHER in model.metadata_props:
            return 0
        main, place = model.graph, Path(self.model).name
        task = _task(main)
        self._check_loss(task)
        teacher = load(self.model, model)
        pairs = [self._results(task, teacher.graph), *self._layers(model, teacher.graph)]
        check(main, teacher.graph, pairs, place)
        _mix(main, task, 1 - self.alpha, graft(main, teacher.graph, pairs))
        main.sort()
        model.metadata_props[TEACHER] = place
        library.link(model)
        infer_shapes(model)
        return len(pairs)

    def remembered(self) -> Pass:
        return replace(self, model=Path(self.model).name)

    def _check_loss(self, task: ir.Node) -> None:
        name = NAMES[task.domain, task.op_type]
        if self.loss not in DISTILLATION:
            hint = f"losses: {', '.join(DISTILLATION)}"
            raise PassError(f"no distillation loss '{self.loss}'{nearest(self.loss, DISTILLATION)}", hint=hint)
        if self.loss == "kl" and name != "cross-entropy":
            hint = "use loss=mse, which compares any outputs"
            raise PassError(f"kl compares probabilities of classes, as cross-entropy does, not {name}", hint=hint)
        if not self.model:
            raise PassError("no teacher is given", hint="name its file: attach-teacher{model=teacher.onnx}")

    def _results(self, task: ir.Node, teacher: ir.Graph) -> Pair:
        theirs = logits(teacher.outputs[0], NAMES[task.domain, task.op_type])
        attributes: dict[str, object] = {"temperature": self.temperature} if self.loss == "kl" else {}
        return Pair("output", self.alpha, graph.operand(task, 0), theirs, DISTILLATION[self.loss], attributes)

    def _layers(self, model: ir.Model, teacher: ir.Graph) -> list[Pair]:
        weights = self._weights()
        if not weights:
            return []
        own, theirs = _student_layers(model), _outputs(teacher)
        for whose, found in (("student", own), ("teacher", theirs)):
            _check_patterns(whose, weights, found)
        pairs = []
        for name, output in own.items():
            weight = next((weights[pattern] for pattern in reversed(weights) if fnmatchcase(name, pattern)), 0.0)
            if weight and name not in theirs:
                hint = "match layers that both have, or give this one the weight 0"
                raise PassError(f"the teacher has no layer '{name}', which a pattern of layers matches", hint=hint)
            if weight:
                pairs.append(Pair(f"layer '{name}'", weight, output, theirs[name], DISTILLATION["mse"]))
        return pairs

    def _weights(self) -> dict[str, float]:
        """The weights by pattern; where several patterns match, the last one counts."""
        try:
            weights = {str(pattern): float(weight) for pattern, weight in json.loads(self.layers or "{}").items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise PassError(f"layers: {error}", hint='write JSON: {"pattern": weight}') from error
        for pattern, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise PassError(f"layers: the weight of '{pattern}' is {weight:g}", hint="give a number from 0 on")
        return weights


def _task(main: ir.Graph) -> ir.Node:
    """The node that holds the predictions against the target."""
    for node in main:
        if (node.domain, node.op_type) in NAMES and any(value and value.name == TARGET for value in node.inputs):
            if THETA in main.initializers:
                return node
            hint = "run expose-parameters first, or the teacher's weights would be taken for the student's"
            raise PassError("what is trained has not been chosen yet", hint=hint)
    raise PassError("there is no loss", hint="run attach-loss,expose-parameters first")


def _student_layers(model: ir.Model) -> dict[str, ir.Value]:
    """The outputs of the layers that the slices of theta enter, by the layers' names."""
    bare = graph.copy(model)
    StripTraining().rewrite(bare)
    own = {value.name: value for value in graph.values(model.graph)}
    return {name: own[value.name] for name, value in _outputs(bare.graph).items()}


def _outputs(main: ir.Graph) -> dict[str, ir.Value]:
    return {layer.name: layer.output for layer in layers.layers(main)}


def _check_patterns(whose: str, patterns: dict[str, float], names: dict[str, ir.Value]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = f"its layers: {', '.join(names)[:500] or 'none'}"
            raise PassError(f"no layer of the {whose} is named like '{pattern}'", hint=hint)


def _mix(main: ir.Graph, task: ir.Node, share: float, pairs: list[Pair]) -> None:
    """Put the weighted sum of the task's loss and of the pairs' where the task's loss was."""
    labels, names = task.outputs[0], graph.Names(main)
    first = total = _weighted(main, labels, share, names)
    for pair in pairs:
        domain, operator = pair.operator.key
        inputs, attributes = [pair.student, pair.teacher], dict(pair.attributes)
        term = scalar(main, operator, inputs, domain, "loss.distilled", names, attributes)
        explain(main[-1], f"compares the {pair.what} of student and teacher")
        total = scalar(main, "Add", [total, _weighted(main, term, pair.weight, names)], "", "loss.mixed", names)
    graph.replace(labels, total)
    node = first.producer()
    assert node is not None
    node.replace_input_with(0, labels)


def _weighted(main: ir.Graph, term: ir.Value, weight: float, names: graph.Names) -> ir.Value:
    factor = graph.add_initializer(main, names.new("loss.share"), np.array(weight, np.float32))
    return scalar(main, "Mul", [term, factor], "", "loss.weighted", names)
