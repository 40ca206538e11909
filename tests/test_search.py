"""Searches: the space and its errors, samplers, resuming, pruning, finalists; the winner again bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import searched_place

from pqc import cli, workflows
from pqc.errors import PqcError, ScheduleError, TrainingError, UsageError
from pqc.report import study, study_plots
from pqc.search import driver, request, samplers
from pqc.search.objectives import Constraint, Objective
from pqc.search.ranking import Point, best, front
from pqc.search.request import Request
from pqc.search.study import Place, Study
from pqc.search.trials import InThisProcess, Outcome, Task

SCHEDULE = """\
pruning: {method: cs, options: {threshold_decay: 1.0e-3}}
training: {batch: 8}
phases:
  training: {epochs: 3}
  fine_tuning: {epochs: 1}
"""
SPACE = """\
schedule: base.yaml
parameters:
  training.learning_rate: {float: [1e-3, 1e-1], log: true, as: "cosine({}, 1e-4)"}
  quantization.weights: {choice: [[1, 0, 3], [1, 0, 7]], also: quantization.biases}
  training.optimizer.name: {choice: [adam, sgd]}
  training.optimizer.options.momentum: {float: [0.5, 0.9], when: {training.optimizer.name: sgd}}
objectives: [accuracy, ebops]
sampler: random
trials: 4
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    searched_place.write(tmp_path, SCHEDULE, SPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, settings: dict[str, str] | None = None) -> Request:
    Path("space.yaml").write_text(text)
    return request.read(Path("space.yaml"), "base.yaml", settings or {})


class Silent:
    """Notes what a search tells."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.finalists: list[tuple[int, int]] = []

    def trial(self, point: Point, done: int, total: int, best: Point | None) -> None:
        self.numbers.append(point.number)

    def finalist(self, number: int, seed: int, outcome: Outcome) -> None:
        self.finalists.append((number, seed))


def formula(task: Task) -> Outcome:
    """Stands for a training: the rate should be 0.02, and wide weights cost."""
    rate = float(re.search(r"cosine\(([^,]+),", task.schedule)[1])  # type: ignore[index]
    wide = "weights:\n  - 1\n  - 0\n  - 7\n" in task.schedule
    accuracy = 0.7 - abs(np.log10(rate) - np.log10(0.02)) / 10 + 0.01 * wide
    return Outcome("complete", {"accuracy": accuracy, "ebops": 200.0 if wide else 100.0}, 1.0)


def searched(asked: Request, folder: Path, run: Callable[[Task], Outcome] = formula, resume: bool = False) -> Study:
    """A whole search with a formula for a training."""
    study = (Study.resume if resume else Study.create)(Place(folder), asked)
    driver.drive(study, InThisProcess(run), Silent())
    return study


# The space


def test_a_point_of_the_space_is_settings_of_the_schedule(place: Path) -> None:
    asked = read(SPACE)
    params = {"training.learning_rate": 0.01, "quantization.weights": "[1, 0, 3]", "training.optimizer.name": "adam"}
    assert asked.space.settings(params) == {
        "training.learning_rate": "cosine(0.01, 1e-4)",
        "quantization.weights": "[1, 0, 3]",
        "quantization.biases": "[1, 0, 3]",
        "training.optimizer.name": "adam",
    }
    plan = asked.resolve(params)
    assert plan.training.learning_rate == "cosine(0.01, 1e-4)"
    assert [kind.bits.f for kind in (plan.quantization.weights, plan.quantization.biases)] == [3, 3]  # type: ignore[union-attr]


def test_the_kept_space_is_the_same_space(place: Path) -> None:
    asked = read(
        SPACE + "constraints: {accuracy: '>= 0.5'}\n",
        {"training.batch": "16", "quantization.layers": "{a: {weight: null}}"},
    )
    again = read(asked.text())
    assert (again.fingerprint()["parameters"], again.text()) == (asked.fingerprint()["parameters"], asked.text())
    assert list(again.file.parameters) == list(asked.file.parameters)
    assert again.settings == {"training.batch": "16", "quantization.layers": "{a: {weight: null}}"}


def test_numbers_keep_all_their_digits(place: Path) -> None:
    asked = read("parameters: {training.optimizer.options.beta2: {float: [0.0, 1.0]}}")
    for value in (1e-05, 0.1 + 0.2, 1 - 2**-53, 2.0**-60):
        assert asked.resolve({"training.optimizer.options.beta2": value}).training.optimizer.options["beta2"] == value


def test_conditional_dimensions_are_there_only_where_they_act(place: Path) -> None:
    study = searched(read(SPACE.replace("trials: 4", "trials: 30")), place / "study")
    seen = {(point.params["training.optimizer.name"], len(point.params)) for point in study.points()}
    assert seen == {("adam", 3), ("sgd", 4)}


def test_a_schedule_is_a_dimension_too(place: Path) -> None:
    asked = read("schedule: [base.yaml, quantize-only]\nparameters: {training.batch: {int: [8, 16], step: 4}}")
    methods = {params["schedule"]: asked.resolve(params).pruning.method for _, params in asked.space.corners()}
    assert methods == {"base.yaml": "cs", "quantize-only": None}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "parameters:\n  training.learnin_rate: {float: [1, 2]}",
            "space.yaml:2: unknown key 'training.learnin_rate'; did you mean 'learning_rate'?\nhint: known keys here: loss,",
        ),
        (
            "parameters:\n  pruning.options.threshold_decy: {float: [0, 1]}",
            "space.yaml:2: 'pruning': 'cs' has no option 'threshold_decy'; did you mean 'threshold_decay'?",
        ),
        (
            "parameters:\n  training.batch: {int: [8, 16]}\n  target.sparsity: {float: [0.5, 1.5]}",
            "space.yaml:3: 'target.sparsity': Input should be less than 1",
        ),
        (
            "parameters:\n  pruning.method: {choice: [cs, dts]}",
            "space.yaml:2: 'pruning.method': no pruning method 'dts'; did you mean 'dst'?",
        ),
        ("parameters:\n  a: {flaot: [0, 1]}", "space.yaml:2: unknown key 'parameters.a.flaot'; did you mean 'float'?"),
        (
            "parameters:\n  a: {float: [2, 1]}",
            "space.yaml:2: 'parameters.a': the lower bound 2 is above the upper bound 1",
        ),
        ("parameters:\n  a: {int: [0, 8], log: true}", "a logarithmic range starts above zero, not at 0"),
        ("parameters:\n  a: {}", "give one of float: [low, high], int: [low, high] or choice: [...]"),
        ("parameters:\n  a: {choice: [1, 1]}", "a choice is between values that differ"),
        ("parameters:\n  a: {float: [0, 1], as: exp}", "as: 'exp' has no {}, where the value goes"),
        ("parameters: {}", "space.yaml:1: 'parameters': there is nothing to vary"),
        (
            "parameters:\n  training.batch: {int: [8, 9], when: {training.seed: 1}}",
            "'parameters': training.batch: when: no parameter 'training.seed' before this one",
        ),
        (
            "parameters:\n  training.optimizer.name: {choice: [adam, sgd]}\n"
            "  training.batch: {int: [8, 9], when: {training.optimizer.name: sdg}}",
            "when: 'training.optimizer.name' is never sdg; did you mean 'sgd'?",
        ),
        ("parameters: {training.batch: {int: [8, 9], also: training.batch}}", "the key 'training.batch' varies twice"),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nobjectives: [acuracy]",
            "space.yaml:2: 'objectives': no metric 'acuracy'; did you mean 'accuracy'?",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nobjectives: [hls.mismatches]",
            "say whether 'hls.mismatches' is to be maximized or minimized: hls.mismatches: minimize",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nconstraints: {ebop: <= 3}",
            "space.yaml:2: 'constraints': no metric 'ebop'; did you mean 'ebops'?",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nconstraints: {ebops: < 3}",
            "a bound is written '>= 0.66' or '<= 5000', not '< 3'",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nsampler: tep",
            "space.yaml:2: 'sampler': no sampler 'tep'; did you mean 'tpe'?",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nsampler: {name: tpe, options: {multivarate: true}}",
            "'tpe' has no option 'multivarate'; did you mean 'multivariate'?",
        ),
        (
            "parameters: {training.learning_rate: {float: [1, 2]}}\nsampler: grid",
            "a grid needs 'training.learning_rate' as a choice, whole numbers, or with a step",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nobjectives: [accuracy, ebops]\npruner: median",
            "space.yaml:3: 'pruner': trials are compared by one objective, not by several",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nobjectives: [seconds]\npruner: median",
            "'seconds' is not measured in every epoch; accuracy, keep_ratio, ebops are",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\ntrails: 3",
            "space.yaml:2: unknown key 'trails'; did you mean 'trials'?",
        ),
        (
            "parameters: {training.batch: {int: [8, 9]}}\nset: {training.bach: 3}",
            "space.yaml:2: unknown key 'training.bach'",
        ),
    ],
)
def test_what_is_wrong_in_a_space_is_said_before_the_first_trial(line: str, words: str, place: Path) -> None:
    with pytest.raises(ScheduleError) as caught:
        read(line)
    assert words in str(caught.value), caught.value
    assert caught.value.at is not None


REFERENCE = """\
pruning_parameters: {pruning_method: dst, alpha: 1.0e-5}
training_parameters: {epochs: 2, batch_size: 8, learning_rate: 0.001, pruning_first: true}
hpo_parameters:
  experiment_name: jets
  num_trials: 7
  sampler: {type: TPESampler, params: {n_startup_trials: 3}}
  hyperparameter_search:
    numerical:
      learning_rate: [1.0e-4, 1.0e-2]
      batch_size: [8, 32, 8]
      alpha: [1.0e-6, 1.0e-4]
    categorical:
      threshold_type: [channelwise, weightwise]
"""


def test_a_search_of_the_reference_library_is_taken(place: Path) -> None:
    asked = read(REFERENCE)
    assert (asked.file.trials, asked.file.sampler.name, asked.file.sampler.options) == (
        7,
        "tpe",
        {"n_startup_trials": 3},
    )
    assert [one.name for one in asked.space.dimensions] == [
        "training_parameters.learning_rate",
        "training_parameters.batch_size",
        "pruning_parameters.alpha",
        "pruning_parameters.threshold_type",
    ]
    point = {"training_parameters.batch_size": 24, "pruning_parameters.alpha": 3e-5}
    plan = asked.resolve({**point, "pruning_parameters.threshold_type": "weightwise"})
    assert (plan.training.batch, plan.pruning.options["alpha"]) == (24, 3e-5)
    assert plan.pruning.options["threshold_type"] == "weightwise"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "      alpha:",
            "      alpah:",
            "space.yaml:11: 'hpo_parameters.hyperparameter_search.numerical.alpah': no section",
        ),
        ("      alpha:", "      final_temp:", "no section has a key 'final_temp'"),
        (
            "TPESampler",
            "TPSampler",
            "space.yaml:6: 'hpo_parameters.sampler.type': no sampler 'TPSampler'; did you mean",
        ),
        ("[8, 32, 8]", "[8]", "a numerical parameter is [low, high] or [low, high, step]"),
        ("num_trials", "num_trails", "unknown key 'num_trails'; did you mean 'num_trials'?"),
        ("[channelwise,", "[chanelwise,", "space.yaml:13: "),
        ("[1.0e-6, 1.0e-4]", "[1.0e-4, 1.0e-6]", "space.yaml:11: "),
    ],
)
def test_a_misspelt_search_of_the_reference_library_is_an_error(old: str, new: str, words: str, place: Path) -> None:
    assert REFERENCE.count(old) == 1
    with pytest.raises(ScheduleError) as caught:
        read(REFERENCE.replace(old, new))
    assert words in str(caught.value), caught.value


# Budgets


@pytest.mark.parametrize(
    ("budget", "least", "objective", "constraints"),
    [
        ("ebops=5000", None, ("accuracy", "maximize"), ["ebops <= 5000"]),
        ("ebops=5000", 0.66, ("ebops", "minimize"), ["ebops <= 5000", "accuracy >= 0.66"]),
        ("keep=0.1", None, ("accuracy", "maximize"), ["keep_ratio <= 0.1"]),
        ("keep=0.1", 0.66, ("keep_ratio", "minimize"), ["keep_ratio <= 0.1", "accuracy >= 0.66"]),
    ],
)
def test_a_budget_chooses_a_space(
    budget: str, least: float | None, objective: tuple[str, str], constraints: list[str]
) -> None:
    asked = workflows.plan_search(workflows.resolve("jet_tagger"), budget, None, {"training.seed": "5"}, least)
    assert [(one.name, one.direction) for one in asked.objectives] == [objective]
    assert [str(one) for one in asked.constraints] == constraints
    plans = [asked.resolve(params) for _, params in asked.space.corners()]
    assert {plan.training.seed for plan in plans} == {5}
    if budget.startswith("ebops"):
        targets = {(plan.target.ebops, plan.phases.training.constraint.ebops) for plan in plans}
        assert targets == {(4950.0, 4950.0), *([(1250.0, 1250.0)] if least else [])}
    else:
        assert {plan.target.sparsity for plan in plans} == {1 - 0.099, *([1 - 0.025] if least else [])}


@pytest.mark.parametrize("budget", ["ebop=3", "keep=1", "keep=0", "ebops=nan", "ebops=many", "ebops"])
def test_a_budget_that_is_none_is_an_error(budget: str) -> None:
    with pytest.raises(UsageError, match="give ebops=5000 or keep=0.1"):
        workflows.plan_search(workflows.resolve("jet_tagger"), budget, None, {})


@pytest.mark.parametrize(
    "arguments",
    [[], ["--space", "space.yaml", "--budget", "keep=0.1"], ["--space", "space.yaml", "--min-accuracy", "0.6"]],
)
def test_a_search_has_a_space_or_a_budget(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli("search", "jet_tagger", *arguments) == 2
    assert "give --space FILE, or --budget NAME=SIZE" in capfd.readouterr().err


# Comparing trials


def _point(number: int, *values: float, feasible: bool = True) -> Point:
    return Point(number, "complete", {}, values, {}, feasible)


def test_the_front_holds_what_no_other_beats() -> None:
    objectives = [Objective("accuracy", "maximize"), Objective("ebops", "minimize")]
    points = [_point(0, 0.6, 10), _point(1, 0.7, 20), _point(2, 0.65, 25), _point(3, 0.7, 20), _point(4, 0.6, 9)]
    points += [_point(5, 0.9, 1, feasible=False)]
    assert [point.number for point in front(points, objectives)] == [1, 4]
    assert [point.number for point in best(points, objectives, 1)] == [1]
    assert [point.number for point in best([_point(0, 3.0), _point(1, 1.0), _point(2, 2.0)], objectives[1:], 2)] == [
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("text", "value", "violation"), [("<= 5", 7.0, 2.0), (">= 0.5", 0.75, -0.25), (">=1", 1.0, 0.0)]
)
def test_a_constraint_says_how_far_it_is_broken(text: str, value: float, violation: float) -> None:
    assert Constraint.parse("x", text).violation(value) == violation


# Samplers


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "gp"])
def test_every_sampler_goes_on_as_if_it_never_stopped(name: str, place: Path) -> None:
    objective = "accuracy" if name == "cma-es" else "[accuracy, ebops]"
    text = f"""\
parameters:
  training.learning_rate: {{float: [0.01, 0.04], step: 0.01, as: "cosine({{}}, 1e-4)"}}
  quantization.weights: {{choice: [[1, 0, 3], [1, 0, 7]], also: quantization.biases}}
objectives: {objective}
constraints: {{accuracy: ">= 0.69"}}
sampler: {name}
trials: 8
seed: 3
"""
    asked = read(text)
    whole = searched(asked, place / "whole").points()
    assert [point.state for point in whole] == ["complete"] * 8
    begun = 0

    def dying(task: Task) -> Outcome:
        nonlocal begun
        begun += 1
        if begun > 5:
            raise KeyboardInterrupt
        return formula(task)

    with pytest.raises(KeyboardInterrupt):
        searched(asked, place / "parts", dying)
    assert [point.state for point in Study.resume(Place(place / "parts"), asked).points()] == ["complete"] * 5 + [
        "running"
    ]
    assert searched(asked, place / "parts", resume=True).points() == whole
    if name in ("grid", "brute-force"):
        assert len({str(point.params) for point in whole}) == 8


def test_an_exhausted_grid_ends_the_search(place: Path) -> None:
    text = "parameters: {training.batch: {int: [8, 10]}}\nsampler: grid\ntrials: 50"
    study = searched(read(text), place / "study", lambda task: Outcome("complete", {"accuracy": 0.5}))
    assert sorted(point.params["training.batch"] for point in study.points()) == [8, 9, 10]


def test_a_sampler_without_its_package_says_so(place: Path) -> None:
    if find_spec("torch") is not None:
        pytest.skip("with PyTorch the sampler works")
    asked = read("parameters: {training.batch: {int: [8, 64]}}\ntrials: 2")
    with pytest.raises(PqcError, match="the sampler 'gp' needs torch\nhint: pip install torch"):
        samplers.sampler("gp", {}, asked.space, 0, 0)


def test_tpe_finds_what_the_formula_wants(place: Path) -> None:
    text = SPACE.replace("random", "{name: tpe, options: {multivariate: true}}").replace(
        "[accuracy, ebops]", "accuracy"
    )
    study = searched(read(text.replace("trials: 4", "trials: 40")), place / "study")
    winner = study.front()[0]
    assert abs(np.log10(winner.params["training.learning_rate"]) - np.log10(0.02)) < 0.05
    assert winner.params["quantization.weights"] == "[1, 0, 7]"


# The course of a search


def test_constraints_are_kept_by_the_winner(place: Path) -> None:
    asked = read(SPACE.replace("trials: 4", "trials: 12\nconstraints: {ebops: <= 150}"))
    study = searched(asked, place / "study")
    assert {point.feasible for point in study.points()} == {True, False}
    assert {point.metrics["ebops"] for point in study.front()} == {100.0}


def test_patience_ends_a_search(place: Path) -> None:
    asked = read("parameters: {training.batch: {int: [8, 64]}}\nsampler: random\ntrials: 50\npatience: 4")
    values = iter([0.1, 0.2, 0.15, 0.3, *[0.25] * 50])
    study = searched(asked, place / "study", lambda task: Outcome("complete", {"accuracy": next(values)}))
    assert len(study.points()) == 4 + 4


def test_a_failed_trial_is_kept_and_the_search_goes_on(place: Path) -> None:
    def run(task: Task) -> Outcome:
        return Outcome("failed", error="the loss became nan") if task.number == 1 else formula(task)

    points = searched(read(SPACE), place / "study", run).points()
    assert [point.state for point in points] == ["complete", "failed", "complete", "complete"]
    assert points[1].error == "the loss became nan"


def test_a_search_whose_first_trials_all_fail_ends(place: Path) -> None:
    with pytest.raises(TrainingError, match="the first 3 trials failed: nan"):
        searched(read(SPACE), place / "study", lambda task: Outcome("failed", error="nan"))


def test_a_point_that_is_no_schedule_fails_alone(place: Path) -> None:
    text = """\
set: {pruning.options: {}}
parameters:
  pruning.method: {choice: [cs, null]}
  target.sparsity: {choice: [null, 0.5]}
sampler: grid
"""
    points = searched(read(text), place / "study", lambda task: Outcome("complete", {"accuracy": 0.5})).points()
    (refused,) = [point for point in points if point.state == "failed"]
    assert len(points) == 4
    assert refused.params == {"pruning.method": "null", "target.sparsity": "0.5"}
    assert "space.yaml:4: 'target': a sparsity target needs a pruning method" in refused.error


def test_a_corner_that_is_no_schedule_is_blamed_on_its_parameter(place: Path) -> None:
    text = """\
set: {phases.training.rewind: every-round, phases.training.rounds: 2}
parameters:
  phases.training.save_weights_epoch: {int: [0, 2]}
  phases.training.epochs: {int: [1, 3]}
"""
    with pytest.raises(ScheduleError, match=r"space.yaml:3: .*needs save_weights_epoch between 0 and 0"):
        read(text)


def test_a_study_is_not_overwritten(place: Path) -> None:
    asked = read(SPACE)
    searched(asked, place / "study")
    with pytest.raises(PqcError, match="there is a study already\nhint: --resume goes on with it"):
        Study.create(Place(place / "study"), asked)
    with pytest.raises(PqcError, match="the study was started with other values of parameters, seed"):
        Study.resume(Place(place / "study"), read(SPACE.replace("0.9]", "0.8]") + "seed: 1\n"))
    longer = Study.resume(Place(place / "study"), asked.with_trials(6))
    driver.drive(longer, InThisProcess(formula), Silent())
    assert len(longer.points()) == 6


def test_a_torn_line_of_the_journal_is_dropped(place: Path) -> None:
    asked = read(SPACE)
    whole = searched(asked, place / "study").points()
    journal = place / "study" / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    assert Study.resume(Place(place / "study"), asked).points() == whole


def test_a_database_holds_a_study(place: Path) -> None:
    asked = read(SPACE)
    where = Place(place / "study", f"sqlite:///{place}/study.db")
    driver.drive(Study.create(where, asked), InThisProcess(formula), Silent())
    assert Study.resume(where, asked).points() == searched(asked, place / "other").points()
    assert not (place / "study" / "journal.log").exists()
    with pytest.raises(PqcError, match=r"cannot open the storage \(nosuch\)") as caught:
        Place(place / "study", "nosuch://me:secret@host/db").storage()
    assert "secret" not in str(caught.value)


def test_a_warm_start_teaches_and_runs_the_best_again(place: Path) -> None:
    asked = read(SPACE)
    old = searched(asked.with_trials(12), place / "old")
    new = Study.create(Place(place / "new"), asked)
    assert new.learn(old) == 12
    assert new.points() == []
    driver.drive(new, InThisProcess(formula), Silent())
    assert len(new.points()) == 4
    assert new.points()[0].params == old.front()[0].params
    one = read(SPACE.replace("[accuracy, ebops]", "ebops"))
    cheap = Study.create(Place(place / "cheap"), one)
    assert (cheap.learn(old), old.request.objectives[0].name) == (12, "accuracy")
    driver.drive(cheap, InThisProcess(formula), Silent())
    assert cheap.points()[0].values == (100.0,)
    other = read(SPACE.replace("[[1, 0, 3], [1, 0, 7]]", "[[1, 0, 3]]"))
    narrow = [point for point in old.points() if point.params["quantization.weights"] == "[1, 0, 3]"]
    assert Study.create(Place(place / "narrow"), other).learn(old) == len(narrow)


def test_finalists_are_trained_again_before_a_winner_is_named(place: Path) -> None:
    asked = read(
        "parameters: {training.batch: {int: [8, 64]}}\nsampler: random\ntrials: 5\nfinalists: {top: 2, seeds: 2}"
    )
    lucky: list[int] = []

    def run(task: Task) -> Outcome:
        if task.in_study:
            return Outcome("complete", {"accuracy": {1: 0.9, 3: 0.8}.get(task.number, 0.1)})
        lucky.append(task.number)
        return Outcome("complete", {"accuracy": {1: 0.2, 3: 0.7}[task.number]})

    study, listener = Study.create(Place(place / "study"), asked), Silent()
    driver.drive(study, InThisProcess(run), listener)
    finalists = driver.retrain(study, InThisProcess(run), listener)
    assert lucky == [1, 1, 3, 3]
    assert listener.finalists == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert [one.number for one in finalists] == [3, 1]
    assert finalists[1].metrics == {0: {"accuracy": 0.9}, 1: {"accuracy": 0.2}, 2: {"accuracy": 0.2}}
    assert driver.winner(study, finalists) == 3
    assert driver.winner(study, []) == 1


# The report

FOUND = {
    "model": "<b>net",
    "data": "d.npz",
    "metric": "accuracy",
    "objectives": [{"name": "accuracy", "direction": "maximize"}, {"name": "ebops", "direction": "minimize"}],
    "constraints": ["accuracy >= 0.5"],
    "parameters": [
        {"name": "a", "low": 1e-4, "high": 1e-2, "log": True, "choices": []},
        {"name": "b.<script>", "low": None, "high": None, "log": False, "choices": ["x", "y"]},
    ],
    "front": [1, 0],
    "winner": 1,
    "importances": {"accuracy": {"a": 0.75, "b.<script>": 0.25}},
    "finalists": [{"number": 1, "metrics": {"0": {"accuracy": 0.8, "ebops": 300.0}}}],
    "trials": [
        {"number": 0, "state": "complete", "params": {"a": 1e-3, "b.<script>": "y"}, "values": [0.6, 100.0]},
        {"number": 1, "state": "complete", "params": {"a": 1e-2}, "values": [0.8, 300.0]},
        {"number": 2, "state": "failed", "params": {"a": 1e-2, "b.<script>": "x"}, "values": []},
    ],
}
for trial in FOUND["trials"]:  # type: ignore[attr-defined]
    trial |= {
        "feasible": trial["state"] == "complete",
        "seconds": 30.0,
        "error": "" if trial["values"] else "it <i>broke",
    }


def test_parallel_axes_place_each_trial() -> None:
    rate, choice, accuracy, ebops = study_plots.axes(FOUND)
    assert rate.places == pytest.approx([0.5, 1.0], rel=1e-12)
    assert rate.ticks == [(0.0, "0.0001"), (pytest.approx(0.5, rel=1e-12), "0.001"), (1.0, "0.01")]
    assert (choice.places, choice.ticks) == ([1.0, None], [(0.0, "x"), (1.0, "y")])
    assert (accuracy.title, accuracy.places, accuracy.ticks[0]) == ("accuracy (%)", [0.0, 1.0], (0.0, "60"))
    assert (ebops.title, ebops.places, ebops.ticks[1]) == ("EBOPs (bit operations)", [0.0, 1.0], (0.5, "200"))


def test_the_report_of_a_search_stands_on_its_own(tmp_path: Path) -> None:
    page = study.write(tmp_path, FOUND).read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"<script|<i>|<b>|https?://(?!www.w3.org)|NaN|None", page)
    assert 'trial 1</div><div class="detail">accuracy 80\N{NO-BREAK SPACE}%, EBOPs 300</div>' in page
    assert "it &lt;i&gt;broke" in page
    for title in ("Pareto front", "Course of the search", "Parameters", "Importances", "Finalists", "Failures"):
        assert f"<h2>{title}</h2>" in page


def test_importances_find_the_parameter_that_matters(place: Path) -> None:
    from pqc.search.importance import importances

    text = SPACE.replace("[accuracy, ebops]", "[ebops, accuracy]").replace("trials: 4", "trials: 40")
    found = importances(searched(read(text), place / "study"))
    assert [max(shares, key=lambda name: shares[name]) for shares in found.values()] == [
        "quantization.weights",
        "training.learning_rate",
    ]
    assert importances(searched(read(SPACE), place / "short")) == {}


def test_nothing_else_needs_optuna_or_dask(place: Path) -> None:
    code = (
        "import sys; sys.modules['optuna'] = sys.modules['distributed'] = sys.modules['dask'] = None\n"
        "from pqc import cli, workflows\n"
        "sys.argv = ['pqc', 'search', 'm.onnx', '--space', 'space.yaml', '-d', 'd.npz', '-o', 'study']\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pqc: environment error: optuna is not installed\nhint: pip install 'pqc[search]'\n"


# Real trainings


def run_cli(*arguments: object) -> int:
    """Call the program in this process."""
    before, sys.argv = sys.argv, ["pqc", "-q", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = before
    code = caught.value.code
    assert isinstance(code, int)
    return code


def weights(path: Path) -> dict[str, bytes]:
    """The stored arrays of a model file, byte for byte."""
    proto = onnx.load(path)
    return {one.name: onnx.numpy_helper.to_array(one).tobytes() for one in proto.graph.initializer}


def test_the_winner_runs_again_bit_for_bit(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli("search", "m.onnx", "--space", "space.yaml", "-d", "d.npz", "-o", "study", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found == json.loads((place / "study/study.json").read_text())
    assert [one["state"] for one in found["trials"]] == ["complete"] * 4
    assert {one["name"]: one["direction"] for one in found["objectives"]} == {
        "accuracy": "maximize",
        "ebops": "minimize",
    }
    assert "<h2>Pareto front</h2>" in (place / "study/report.html").read_text()
    trial = place / f"study/trials/{found['winner']:04}"
    assert (place / "study/best.yaml").read_bytes() == (trial / "schedule.yaml").read_bytes()
    run_cli("run", "m.onnx", "-s", "study/best.yaml", "-d", "d.npz", "-o", "again", "--no-hls")
    for name in ("trained.onnx", "clean.onnx"):
        assert weights(place / "again" / name) == weights(trial / name)
        assert weights(trial / name)
    again, first = (json.loads((folder / "summary.json").read_text()) for folder in (place / "again", trial))
    assert {key: again[key] for key in ("clean", "validation", "ebops", "keep_ratio", "seed")} == {
        key: first[key] for key in ("clean", "validation", "ebops", "keep_ratio", "seed")
    }
    winner = found["trials"][found["winner"]]
    assert winner["metrics"] == {"accuracy": first["validation"]["accuracy"], "ebops": first["ebops"]}
    assert winner["metrics"]["accuracy"] == max(one["metrics"]["accuracy"] for one in found["trials"])


def results(folder: Path) -> list[dict[str, object]]:
    """What a study found, but for the times."""
    trials = json.loads((folder / "study.json").read_text())["trials"]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in trials]


def test_a_killed_search_goes_on_and_ends_as_if_it_never_was(place: Path) -> None:
    more = ["--space", "space.yaml", "-d", "d.npz", "--set", "phases.training.epochs=60"]
    assert run_cli("search", "m.onnx", *more, "-o", "whole") == 0
    words = _killed_in_trial(1, signal.SIGINT, place, [*more, "-o", "parts"])
    assert "pqc: interrupted: parts: stopped after 1 of 4 trials\nhint: the same command with --resume" in words
    assert run_cli("search", "m.onnx", *more, "-o", "parts") == 1
    _killed_in_trial(2, signal.SIGKILL, place, [*more, "-o", "parts", "--resume"])
    assert run_cli("search", "m.onnx", *more, "-o", "parts", "--resume") == 0
    assert results(place / "parts") == results(place / "whole")
    for trial in range(4):
        folders = [place / one / f"trials/{trial:04}" for one in ("parts", "whole")]
        assert weights(folders[0] / "clean.onnx") == weights(folders[1] / "clean.onnx")


def _killed_in_trial(trial: int, number: signal.Signals, place: Path, arguments: list[str]) -> str:
    """Search in a process, and send it a signal while it trains a trial; what it says on standard error."""
    command = [sys.executable, "-m", "pqc", "search", "m.onnx", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder, deadline = place / f"parts/trials/{trial:04}", time.monotonic() + 120
    while not (folder / "checkpoint.npz").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, words = process.communicate(timeout=60)
    assert not (folder / "result.json").exists()
    assert not (place / "parts/study.json").exists()
    return words


def test_hopeless_trials_are_pruned(place: Path) -> None:
    text = """\
schedule: base.yaml
set: {pruning.method: null, pruning.options: {}, phases.training.epochs: 12}
parameters:
  training.learning_rate: {choice: [1.0e-7, 10.0]}
sampler: grid
pruner: {name: threshold, options: {lower: 0.9, n_warmup_steps: 5}}
"""
    Path("space.yaml").write_text(text)
    assert run_cli("search", "m.onnx", "--space", "space.yaml", "-d", "d.npz", "-o", "study") == 0
    found = {
        one["params"]["training.learning_rate"]: one
        for one in json.loads(Path("study/study.json").read_text())["trials"]
    }
    assert {rate: one["state"] for rate, one in found.items()} == {"1.0e-07": "complete", "10.0": "pruned"}
    pruned = place / f"study/trials/{found['10.0']['number']:04}"
    assert not (pruned / "summary.json").exists()
    assert (pruned / "schedule.yaml").exists()


def test_a_warm_start_from_nowhere_begins_no_study(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--space", "space.yaml", "-d", "d.npz", "-o", "study", "--warm-start", "old"]
    assert run_cli("search", "m.onnx", *more) == 1
    assert "pqc: error: old: there is no study\nhint: give the folder of a `pqc search`" in capfd.readouterr().err
    assert not Path("study").exists()


def test_a_search_without_a_feasible_trial_says_so(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text(SPACE.replace("trials: 4", "trials: 2\nconstraints: {ebops: <= 1}"))
    assert run_cli("search", "m.onnx", "--space", "space.yaml", "-d", "d.npz", "-o", "study") == 1
    assert "none of 2 trials keeps ebops <= 1\nhint: loosen the constraints" in capfd.readouterr().err
    assert not Path("study/best.yaml").exists()
    assert json.loads(Path("study/study.json").read_text())["winner"] is None
