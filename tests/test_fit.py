"""The parts of the search for bit widths and masks: Fisher diagonals, goals, weights on grids, searches, the journal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from pydantic import ValidationError

from pqc import data, engine, pipeline
from pqc.calibration import Calibration
from pqc.data import Split
from pqc.errors import TrainingError
from pqc.fit.fisher import Estimator, Fisher, is_known
from pqc.fit.goal import Counts, Goal
from pqc.fit.journal import Journal
from pqc.fit.nodes import PRUNE, Neighbourhood, Node
from pqc.fit.search import Outcome, search
from pqc.fit.settings import FisherSettings, Fit
from pqc.fit.space import FLOAT, Rounding, Space, Weight
from pqc.fixed_point import FixedPoint
from pqc.schedule import Schedule
from pqc.workflows.compression import NORMALIZE, floating_pipeline

TANH_NET = """(float[n,5] x) => (float[n,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias) a = Tanh (h)
    y = Gemm <transB: int = 1> (a, fc2__weight, fc2__bias) }"""
ROWS, SEED = 24, 5


def net(rng: np.random.Generator) -> ir.Model:
    shapes = {"fc1__weight": (6, 5), "fc1__bias": (6,), "fc2__weight": (3, 6), "fc2__bias": (3,)}
    return onnx_model(TANH_NET, **{name: rng.normal(0, 0.6, shape) for name, shape in shapes.items()})


# Fisher diagonals


def squared_gradients(
    w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, x: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64: squared derivatives of the mean cross entropy by both weights, and by what enters the second layer."""
    a = np.tanh(x @ w1.T + b1)
    logits = a @ w2.T + b2
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    by_logits = (p - np.eye(3)[target]) / len(x)
    by_a = by_logits @ w2
    by_h = by_a * (1 - a**2)
    return (by_h.T @ x) ** 2, (by_logits.T @ a) ** 2, by_a**2


@pytest.mark.parametrize(("batch", "batches"), [(1, ROWS), (1, 30), (4, 6), (5, 9)])
def test_the_fisher_diagonal_equals_the_reference(batch: int, batches: int, rng: np.random.Generator) -> None:
    model = net(rng)
    arrays = [np.array(model.graph.initializers[name].const_value.numpy(), np.float64) for name in NAMES]
    x, target = rng.normal(0, 1, (ROWS, 5)).astype(np.float32), rng.integers(0, 3, ROWS)
    pipeline.run(model, f"{NORMALIZE},{floating_pipeline(Schedule())}")
    plan = Schedule.model_validate({"training": {"seed": SEED}})
    settings = FisherSettings(batch=batch, least=batches, most=batches, activations=True)
    split = Split({"x": x}, target, np.arange(ROWS))
    estimator = Estimator(model, ["fc2.weight", "fc1.weight"], plan, split, settings)

    moved = [arrays[0] * 0.5, arrays[1], arrays[2] + 0.25, arrays[3]]
    flat = np.concatenate([moved[2].T.ravel(), moved[0].T.ravel()]).astype(np.float32)  # inputs come first in MatMul
    found = estimator.measure(flat)

    orders = (np.random.default_rng([SEED, number]).permutation(ROWS) for number in itertools.count())
    groups = (order[start : start + batch] for order in orders for start in range(0, ROWS - batch + 1, batch))
    sums = [np.zeros(18), np.zeros(30), 0.0]
    for rows in itertools.islice(groups, batches):
        by_w1, by_w2, by_a = squared_gradients(*moved, x[rows].astype(np.float64), target[rows])
        for index, one in enumerate((by_w2.T.ravel(), by_w1.T.ravel(), by_a.sum())):
            sums[index] = sums[index] + batch * one / batches
    np.testing.assert_allclose(found.weights, np.concatenate(sums[:2]), rtol=2e-4, atol=1e-10)
    np.testing.assert_allclose(found.activations["fc2"], sums[2], rtol=2e-5)
    assert found.activations.keys() == {"fc2"}
    assert found.batches == batches


NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def test_measuring_stops_when_the_trace_is_known(rng: np.random.Generator) -> None:
    model = net(rng)
    x, target = rng.normal(0, 1, (400, 5)).astype(np.float32), rng.integers(0, 3, 400)
    pipeline.run(model, f"{NORMALIZE},{floating_pipeline(Schedule())}")
    split = Split({"x": x}, target, np.arange(400))
    counts = []
    for tolerance in (1e-1, 3e-2, 1e-9):
        settings = FisherSettings(batch=8, least=3, most=40, tolerance=tolerance)
        estimator = Estimator(model, ["fc1.weight"], Schedule(), split, settings)
        counts.append(estimator.measure(model.graph.initializers["fc1.weight"].const_value.numpy().ravel()).batches)
    assert 3 <= counts[0] < counts[1] < counts[2] == 40


@pytest.mark.parametrize(("variance", "known"), [(0.99, True), (1.01, False)])
def test_the_rule_is_the_variance_of_the_mean_trace(variance: float, known: bool, rng: np.random.Generator) -> None:
    """var(t / mean(t)) / n against the tolerance."""
    settings = FisherSettings(least=2, most=100, tolerance=1e-3)
    noise = rng.normal(0, 1, 20)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(variance * 20 * settings.tolerance)
    traces = [[7.0 * (1 + one)] for one in noise]
    assert is_known(traces, settings) is known
    assert not is_known([[trace[0], other] for trace, other in zip(traces, [1.0, 5.0] * 10, strict=True)], settings)


def test_the_rule_waits_for_the_least_and_ends_with_the_most() -> None:
    settings = FisherSettings(least=3, most=5, tolerance=1e-3)
    assert [is_known([[2.0]] * count, settings) for count in (1, 2, 3)] == [False, False, True]
    assert [is_known([[1.0], [9.0], [1.0], [9.0], [1.0]][:count], settings) for count in (3, 4, 5)] == [
        False,
        False,
        True,
    ]
    assert is_known([[0.0]] * 3, settings)


# Goals


def test_the_measures() -> None:
    counts = Counts(np.array([10, 30]), np.array([5, 12]), np.array([8, 3]), np.array([2.0, 0.5]), 7.0)
    values = {name: Goal(name, 1.0).value(counts) for name in ("rate", "ebops", "bits", "keep")}
    assert values == {"rate": (5 * 8 + 12 * 3) / (32 * 40), "ebops": 80 + 18 + 7, "bits": 170 / 40, "keep": 17 / 40}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("rat=0.1", "no goal 'rat'; did you mean 'rate'?"),
        ("rate", "a goal is one of rate, ebops, bits, keep with a number"),
        ({"rate": 0.1, "keep": 0.2}, "a goal is one of"),
        ("rate=much", "the goal 'rate' needs a number, not 'much'"),
        ("keep=0", "a goal is a number above 0"),
        ("keep=inf", "a goal is a number above 0"),
    ],
)
def test_what_is_no_goal(given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?").replace("(", r"\(")):
        Goal.read(given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (4, 4)}, "widths go from many to few"),
        ({"quantize": False}, "nothing would change"),
        ({"search": "beam:0"}, "beam:8"),
        ({"sparsities": {"start": -2, "end": -1}}, "end is below start"),
        ({"fisher": {"least": 9, "most": 3}}, "least is 9, above most"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Fit(goal="rate=0.1", **changes)


def test_the_published_shares() -> None:
    """1 - logspace(0, -3, 40): from nothing to 0.999."""
    shares = Fit(goal="rate=0.1").sparsities.shares()
    assert (len(shares), shares[0], round(shares[-1], 12)) == (40, 0.0, 0.999)
    assert shares[1] == pytest.approx(1 - 10 ** (-3 / 39), abs=1e-15)


# Weights on grids


@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR", "HALF_UP", "DOWN"])
@pytest.mark.parametrize("kind", ["1,0,3", "1,-2,5", "1,1,0", "1,3,-1"])
def test_weights_are_rounded_as_in_the_graph(kind: str, rounding: str, rng: np.random.Generator) -> None:
    numbers = rng.normal(0, 0.7, (4, 6)).astype(np.float32)
    numbers[0, :4] = [0.0625, -0.1875, 0.5, -8]
    model = onnx_model("(float[n,4] x) => (float[n,6] y) { y = MatMul (x, fc__weight) }", fc__weight=numbers)
    pipeline.run(model, f"insert-quant{{weights={kind} inputs=none rounding={rounding}}}")
    found = engine.evaluate(model, {"x": np.eye(4, dtype=np.float32)})["y"]
    weight = Weight("fc.weight", "fc", numbers, (FixedPoint.parse(kind),), Rounding(rounding))
    values = Space([weight]).values((0,), np.ones(24, bool))
    np.testing.assert_array_equal(values.reshape(4, 6), found)


def test_integer_bits_suit_the_numbers() -> None:
    rounding, how = Rounding(), Calibration("min-max")
    assert rounding.type_of(np.array([0.3, -0.1], np.float32), 4, how) == FixedPoint(1, -1, 5)
    assert rounding.type_of(np.array([2.5], np.float32), 4, how) == FixedPoint(1, 2, 2)
    assert rounding.type_of(np.zeros(3, np.float32), 4, how) == FixedPoint(1, 0, 4)


def test_shares_are_pruned_to_one_number() -> None:
    weights = [Weight(name, name, np.arange(1.0, 11.0), prunable=name != "b") for name in "abc"]
    space = Space(weights)
    importance = np.concatenate([np.arange(10.0), np.zeros(10), np.arange(10.0)])
    first = space.pruned(np.ones(30, bool), 0.25, importance)
    assert np.flatnonzero(~first).tolist() == [0, 1, 2, 20, 21]  # of equals the first
    second = space.pruned(first, 0.5, importance[::-1])
    assert (~second).sum() == 10
    assert second[10:20].all()
    assert not (second & ~first).any()


# Searches


class Given:
    """Fisher diagonals that are known: the same at every node, or another at each."""

    def __init__(self, weights: np.ndarray, moving: float = 0.0) -> None:
        self.weights, self.moving = weights, moving
        self.measured = 0

    def measure(self, weights: np.ndarray) -> Fisher:
        self.measured += 1
        return Fisher(self.weights * (1 + self.moving * np.abs(weights)), 1)


def neighbourhood(rng: np.random.Generator, goal: str, moving: float = 0.0, **settings: Any) -> Neighbourhood:
    """Three weights of 6, 8 and 5 numbers with three widths each."""
    fit = Fit(goal=goal, widths=settings.pop("widths", (6, 3, 2)), **settings)
    rounding, how = Rounding(), Calibration("mse")
    weights = []
    for name, size in (("a", 6), ("b", 8), ("c", 5)):
        numbers = rng.normal(0, rng.uniform(0.2, 2), size).astype(np.float32)
        types = tuple(rounding.type_of(numbers, width, how) for width in fit.widths)
        weights.append(Weight(f"{name}.weight", name, numbers, types, rounding))
    estimator = Given(rng.exponential(1, 19), moving)
    return Neighbourhood(Space(weights), fit.goal, estimator, fit)


def shortest(tried: Neighbourhood) -> float:
    """The shortest of all ways to the goal, every one of them walked."""
    best, stack = np.inf, [tried.start()]
    while stack:
        node = stack.pop()
        for one in tried.expand(node):
            if tried.goal.met(one.value):
                best = min(best, one.length)
            else:
                stack.append(one)
    return best


def found(tried: Neighbourhood, **changes: Any) -> Outcome:
    return search(tried.start(), tried.expand, tried.goal, tried.settings.model_copy(update=changes))


@pytest.mark.parametrize("goal", ["rate=0.2", "rate=0.08", "bits=5.5", "keep=0.7"])
@pytest.mark.parametrize("seed", range(3))
def test_astar_finds_the_shortest_of_all_ways(goal: str, seed: int) -> None:
    tried = neighbourhood(np.random.default_rng(seed), goal, estimate="once", widths=(4, 2))
    expected = shortest(tried)
    for heuristic in (0.0, 1.0, 5.0):
        again = neighbourhood(
            np.random.default_rng(seed), goal, estimate="once", widths=(4, 2), heuristic=heuristic, search="astar"
        )
        outcome = search(again.start(), again.expand, again.goal, again.settings)
        assert outcome.exhausted
        if outcome.node is None:
            assert expected == np.inf
        else:
            assert outcome.node.length == pytest.approx(expected, rel=1e-12)
            assert again.goal.met(outcome.node.value)


def test_a_wide_beam_finds_what_astar_finds(rng: np.random.Generator) -> None:
    tried = neighbourhood(rng, "rate=0.1", estimate="once")
    outcomes = {name: found(tried, search=name) for name in ("greedy", "beam:2", "beam:64", "astar")}
    lengths = {name: one.node.length for name, one in outcomes.items() if one.node is not None}
    assert lengths["beam:64"] == lengths["astar"]
    assert lengths["astar"] <= lengths["beam:2"] <= lengths["greedy"] + 1e-12
    assert outcomes["greedy"].expansions < outcomes["beam:64"].expansions


def node(name: int, value: float, length: float, rank: float = 0.0) -> Node:
    return Node((name,), 0, np.ones(1, bool), value, length, rank)


def test_the_best_node_that_meets_the_goal_is_taken_not_the_first() -> None:
    children = {0: [node(1, 0.5, 3.0), node(2, 0.5, 2.0), node(3, 0.9, 1.0)], 3: [node(4, 0.4, 1.5), node(5, 0.6, 1.6)]}

    def expand(one: Node) -> list[Node]:
        return children.get(one.levels[0], [])

    for how in ("greedy", "beam:2", "astar"):
        outcome = search(node(0, 1.0, 0.0), expand, Goal("rate", 0.6), Fit(goal="rate=0.6", search=how))
        assert outcome.node is not None
        assert outcome.node.levels == (4,), how
        assert outcome.exhausted


def test_a_goal_beyond_reach(rng: np.random.Generator) -> None:
    tried = neighbourhood(rng, "bits=2.9", estimate="once")
    for how in ("greedy", "beam:3", "astar"):
        outcome = found(tried, search=how)
        assert outcome.node is None
        assert outcome.exhausted
        assert outcome.nearest.levels == (2, 2, 2)
        assert outcome.nearest.value == 3.0


def test_expansions_are_limited(rng: np.random.Generator) -> None:
    tried = neighbourhood(rng, "bits=2.9", estimate="once")
    for how in ("greedy", "beam:3", "astar"):
        outcome = found(tried, search=how, expansions=4)
        assert (outcome.expansions, outcome.exhausted, outcome.node) == (4, False, None)


def test_a_start_that_meets_the_goal_is_the_end(rng: np.random.Generator) -> None:
    tried = neighbourhood(rng, "bits=40", estimate="once")
    outcome = found(tried)
    assert outcome.node is not None
    assert (outcome.node.levels, outcome.expansions) == ((FLOAT, FLOAT, FLOAT), 0)


def test_a_step_costs_what_the_formula_says(rng: np.random.Generator) -> None:
    tried = neighbourhood(rng, "rate=0.1", prune=True, sparsities={"start": 0, "end": -1, "steps": 4}, heuristic=2.0)
    fisher = tried._estimator.weights
    start = tried.start()
    assert start.value == 1.0
    children = tried.expand(start)
    assert [one.step for one in children] == [0, 1, 2, PRUNE]
    for one in children:
        after = tried.space.values(one.levels, one.mask).astype(np.float64)
        length = np.sqrt((fisher * (tried.space.numbers - after) ** 2).sum())
        left = abs(one.value - 0.1) * np.sqrt((fisher * after**2).sum())
        assert one.length == pytest.approx(length, rel=1e-12)
        assert one.rank == pytest.approx(length + 2 * left, rel=1e-12)
    pruned = children[-1]
    gone = int((1 - 10 ** (-1 / 3)) * 19)
    importance = fisher * tried.space.numbers.astype(np.float64) ** 2
    assert np.flatnonzero(~pruned.mask).tolist() == np.sort(np.argsort(importance)[:gone]).tolist()
    after = tried.expand(children[0])[0]
    assert after.length > children[0].length
    assert [one.step for one in after.path()] == [None, 0, 0]


@pytest.mark.parametrize(("estimate", "measured"), [("once", 1), ("expanded", 3), ("neighbours", 12)])
def test_where_the_fisher_diagonal_is_measured(estimate: str, measured: int, rng: np.random.Generator) -> None:
    """Three nodes of three neighbours each, one after the other."""
    tried = neighbourhood(rng, "rate=0.01", estimate=estimate)
    node = tried.start()
    for _ in range(3):
        node = tried.expand(node)[0] if node.levels[0] < 2 else tried.expand(node)[1]
    assert tried._estimator.measured == measured


# The journal


class Stop(Exception):
    """Stands for an interrupt."""


def stopping(after: int) -> Callable[[int, Node], None]:
    def told(done: int, _: Node) -> None:
        if done == after:
            raise Stop

    return told


@pytest.mark.parametrize("how", ["greedy", "beam:3", "astar"])
def test_a_search_goes_on_from_its_journal_with_the_same_bits(how: str, tmp_path: Path) -> None:
    def fresh() -> Neighbourhood:
        rng = np.random.default_rng(SEED)
        shares = {"start": 0, "end": -1, "steps": 5}
        return neighbourhood(rng, "rate=0.06", moving=0.3, prune=True, sparsities=shares, search=how)

    whole = fresh()
    expected = search(whole.start(), Journal(whole, tmp_path / "whole", "same").expand, whole.goal, whole.settings)
    assert expected.node is not None

    begun = fresh()
    journal = Journal(begun, tmp_path / "parts", "same", listener=stopping(5))
    with pytest.raises(Stop):
        search(begun.start(), journal.expand, begun.goal, begun.settings)
    measured = whole._estimator.measured

    resumed = fresh()
    journal = Journal(resumed, tmp_path / "parts", "same", resume=True)
    outcome = search(resumed.start(), journal.expand, resumed.goal, resumed.settings)
    assert outcome.node is not None
    assert (outcome.expansions, outcome.node.key) == (expected.expansions, expected.node.key)
    for one, other in zip(outcome.node.path(), expected.node.path(), strict=True):
        assert (one.value, one.length, one.rank, one.step) == (other.value, other.length, other.rank, other.step)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert resumed._estimator.measured == measured - 5


def test_a_journal_of_another_search_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tried = neighbourhood(rng, "rate=0.1")
    Journal(tried, tmp_path, "one").expand(tried.start())
    with pytest.raises(TrainingError, match="the journal belongs to another search"):
        Journal(tried, tmp_path, "other", resume=True)
    Journal(tried, tmp_path, "other")
    assert list(tmp_path.glob("*.npz")) == []


def test_a_damaged_journal_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tried = neighbourhood(rng, "rate=0.1")
    Journal(tried, tmp_path, "one").expand(tried.start())
    path = tmp_path / "000000.npz"
    arrays = data.read(path)
    np.savez(path, **{**arrays, "numbers": arrays["numbers"] + 1})
    with pytest.raises(TrainingError, match="the journal is damaged"):
        Journal(tried, tmp_path, "one", resume=True).expand(tried.start())
    np.savez(path, **arrays)
    with pytest.raises(TrainingError, match="the journal is damaged"):
        Journal(tried, tmp_path, "one", resume=True).expand(replace(tried.start(), levels=(0, 0, 0)))
