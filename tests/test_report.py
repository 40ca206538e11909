"""The report: its numbers, its curves, and what it does with odd or hostile input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqc.report import curves, fit, markup, page, plots, roc

MINUS = "\N{MINUS SIGN}"
HOSTILE = "</svg><script>alert('x')</script>&\"$\\frac{$_\u202e\x00漢"


def small_run(names: tuple[str, ...] = ("fc1", "fc2"), classes: int = 3, rows: int = 400) -> dict[str, Any]:
    """The arguments of `page.write` for a run of few rows."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, max(classes, 2), rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), np.minimum(target, classes - 1)] += 1.5 * (target if classes == 1 else 1)
    weights = {name: np.round(rng.normal(size=(8, 4)) * 4) / 4 * (rng.random((8, 4)) < 0.4) for name in names}
    return {
        "summary": summary(weights),
        "history": history(),
        "weights": weights,
        "float_weights": {name: rng.normal(size=(8, 4)).astype(np.float32) for name in names},
        "target": target,
        "scores": {"float": logits.astype(np.float32), "clean": np.round(logits * 8) / 8},
        "class_names": ("gluon", "top"),
    }


def summary(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """A summary with a different number in each place."""
    accumulator = {"operator": "MatMul", "tensor": "accum", "type": "fixed<17,6>", "low": -12.5, "high": 14.25}
    return {
        "model": "jet_tagger",
        "schedule": "cs-demo",
        "data": "toy",
        "metric": "accuracy",
        "float": {"accuracy": 0.6818},
        "trained": {"accuracy": 0.6793},
        "clean": {"accuracy": 0.6782},
        "hls": {
            "accuracy": 0.6771,
            "samples": 20000,
            "mismatches": 0,
            "max_difference": 0.0,
            "backend": "Vitis",
            "io_type": "io_parallel",
            "head": "Softmax",
            "folder": "hls",
        },
        "keep_ratio": 0.0775,
        "ebops": 20624,
        "layers": [layer(name, array, index) for index, (name, array) in enumerate(weights.items())],
        "precisions": [{"layer": name, **accumulator} for name in weights],
        "passes": [
            {"text": "fold-masks", "changed": 4, "seconds": 0.0125, "difference": None},
            {"text": "fold-quant", "changed": 31, "seconds": 0.25, "difference": 3.5e-8},
        ],
        "seconds": 61.2,
        "timings": {"train": 20.1, "hls": 30.5},
        "seed": 77,
        "device": "cpu",
        "threads": 3,
        "versions": {"pqc": "0.1.0", "python": "3.11.7"},
    }


def layer(name: str, array: np.ndarray, index: int) -> dict[str, Any]:
    """A layer's record of costs."""
    return {
        "name": name,
        "operator": "MatMul",
        "shape": list(array.shape),
        "weights": array.size,
        "nonzero": int(np.count_nonzero(array)),
        "bits_weight": 6,
        "bits_bias": 11,
        "bits_input": 9,
        "ebops": 1234 + index,
    }


def history(epochs: int = 3) -> list[dict[str, Any]]:
    """Pretraining, two rounds of training and fine-tuning, some epochs each."""
    plan = [("pretraining", 0), ("training", 0), ("training", 1), ("fine-tuning", 0)]
    return [
        {
            "epoch": 1 + index * epochs + step,
            "stage": stage,
            "round": number,
            "loss": 1 / (1 + step),
            "validation_loss": float("nan") if step == 1 else 1.1 / (1 + step),
            "accuracy": 0.5,
            "keep_ratio": 1.0,
            "ebops": 30000,
            "learning_rate": 10.0**-step,
            "beta": 2.0**step if stage == "training" else None,
            "seconds": 0.1,
        }
        for index, (stage, number) in enumerate(plan)
        for step in range(epochs)
    ]


def written(folder: Path, **changes: Any) -> str:
    """The page of a small run with changed arguments; holds the checks that every page must pass."""
    arguments = {**small_run(), **changes}
    path = page.write(folder, arguments.pop("summary"), arguments.pop("history"), **arguments)
    assert path == folder / "report.html"
    content = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf)\b", content, re.IGNORECASE)
    assert "http://" not in content and "https://" not in content
    assert not re.search(r'\b(src|href)="(?!#)', content)
    assert "<script" not in content and "@import" not in content
    assert content.count("<svg ") == content.count("</svg>")
    return content


def pair_area(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under a ROC curve by counting pairs, a tie one half."""
    difference = scores[positive][:, None] - scores[~positive][None, :]
    return float((np.sum(difference > 0) + 0.5 * np.sum(difference == 0)) / difference.size)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_area_counts_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        scores = rng.integers(0, levels, 60) / 8
        positive = rng.random(60) < 0.3
        found = roc.curve(scores, positive)
        assert found is not None
        assert found.area == pytest.approx(pair_area(scores, positive), abs=1e-15)


def test_curve_has_a_point_for_each_cut() -> None:
    scores = np.array([0.5, 0.5, 0.9, 0.1, 0.5])
    positive = np.array([True, False, True, False, True])
    found = roc.curve(scores, positive)
    assert found is not None
    np.testing.assert_array_equal(found.false_positive, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(found.true_positive, [0, 1 / 3, 1, 1])
    assert roc.curve(scores, np.ones(5, bool)) is None


def test_thinning_keeps_the_ends_and_the_shape() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(50_000) < 0.2
    found = roc.curve(rng.normal(size=50_000) + positive, positive)
    assert found is not None
    x, y = roc.thinned(found)
    assert len(x) <= 302 and (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(found.false_positive, x, y) - found.true_positive).max() < 0.01


def test_logits_and_probabilities_rank_alike() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 4)) * 3
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(roc.odds(probabilities), roc.odds(logits), rtol=1e-5, atol=1e-5)
    share = probabilities / (1 - probabilities)
    np.testing.assert_allclose(roc.odds(logits), np.log(share), rtol=1e-5, atol=1e-5)


def test_one_vs_rest_names_and_classes() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 50)
    two = {"clean": rng.normal(size=(50, 2))}
    (tag,) = roc.one_vs_rest(target, two, ("background", "signal"))
    assert tag.name == "signal"
    assert tag.curves["clean"].area == pytest.approx(pair_area(two["clean"] @ [-1, 1], target == 1))
    one = {"clean": rng.normal(size=(50, 1))}
    (tag,) = roc.one_vs_rest(target, one, ())
    assert tag.name == "class 1"
    assert tag.curves["clean"].area == pytest.approx(pair_area(one["clean"][:, 0], target == 1))
    missing = roc.one_vs_rest(np.where(target == 0, 0, 2), {"clean": rng.normal(size=(50, 3))}, ())
    assert [tag.name for tag in missing] == ["class 0", "class 2"]


def test_values_are_no_class_labels() -> None:
    scores = {"clean": np.zeros((4, 3))}
    for target in (np.array([0.1, 1.0, 2.0, 0.0]), np.array([0, 1, 2, 3]), np.full(4, np.nan), np.zeros(0)):
        assert roc.one_vs_rest(target, scores, ()) == []
    several = roc.one_vs_rest(np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]]), scores, ())
    assert [tag.curves["clean"].area for tag in several] == [0.5, 0.5, 0.5]


def test_bins_follow_the_grid() -> None:
    grid = np.arange(-100, 101) / 64
    edges = plots.bins(grid, np.array([-2.0, 2.0]))
    assert edges[0] < -2 and edges[-1] > 2 and len(edges) < 60
    inside = np.histogram(grid, edges)[0]
    assert len(set(inside[(edges[:-1] > grid[0]) & (edges[1:] < grid[-1])])) == 1
    for single in (np.array([3.0]), np.zeros(0), np.array([1e30])):
        assert (np.diff(plots.bins(single, np.zeros(0))) > 0).all()


def test_page_holds_every_number(tmp_path: Path) -> None:
    content = written(tmp_path)
    shown = ("jet_tagger", "cs-demo", "toy", "68.18", "67.93", "67.82", "67.71", "7.75", "20,624", "20,000")
    shown += (
        f"{MINUS}0.36",
        "0 mismatches",
        "card good",
        "Vitis",
        "io_parallel",
        "hls/",
        "Softmax",
        "8\N{MULTIPLICATION SIGN}4",
        ">32<",
        "fc1",
    )
    shown += (
        ">6<",
        ">11<",
        ">9<",
        "1,234",
        "1,235",
        "fixed&lt;17,6&gt;",
        f"{MINUS}12.5",
        "14.25",
        "fold-masks",
        "61.2",
    )
    shown += ("0.0125", ">31<", "3.5e-08", "not measured", "20.1", "30.5", ">77<", ">cpu<", ">3<", "0.1.0", "3.11.7")
    shown += ("gluon: AUC float 0.", "top: AUC float 0.", "class 2: AUC float 0.", "control: beta", "pretraining")
    missing = [text for text in shown if text not in content]
    assert not missing
    for cost in small_run()["summary"]["layers"]:
        assert f"{cost['weights'] - cost['nonzero']} of {cost['weights']} are zero" in content


def test_page_is_the_same_each_time(tmp_path: Path) -> None:
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_identifiers_are_unique(tmp_path: Path) -> None:
    names = re.findall(r'\bid="([^"]*)"', written(tmp_path))
    assert len(names) == len(set(names))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = small_run((HOSTILE, "_hidden"))
    for key in ("model", "schedule", "data"):
        run["summary"][key] = HOSTILE
    run["summary"]["passes"][0]["text"] = HOSTILE
    run["summary"]["versions"] = {HOSTILE: HOSTILE}
    run["history"] = [{**record, "stage": HOSTILE, HOSTILE: 0.5} for record in run["history"]]
    content = written(tmp_path, **{**run, "class_names": [HOSTILE] * 3})
    assert "&lt;/svg&gt;&lt;script&gt;" in content
    assert "\u202e" not in content and "\x00" not in content


@pytest.mark.parametrize(
    ("hls", "shown", "kind"),
    [
        (None, "not run", "card "),
        ({"skipped": "no <compiler>"}, "no &lt;compiler&gt;", "card "),
        ({"samples": 0, "mismatches": 0}, "not run", "card "),
        ({"samples": 10, "mismatches": 1, "max_difference": 0.5}, "1 mismatch<", "card bad"),
        ({"samples": 10, "mismatches": 0, "max_difference": 0.25}, "difference 0.25", "card bad"),
        ({"samples": 10, "mismatches": 0, "max_difference": float("nan")}, "0 mismatches", "card bad"),
        ({"samples": 10, "mismatches": 0, "max_difference": 0.0, "head": None}, "0 mismatches", "card good"),
    ],
)
def test_verdict(tmp_path: Path, hls: dict[str, Any] | None, shown: str, kind: str) -> None:
    content = written(tmp_path, summary={"model": "m", "hls": hls}, history=[], weights={}, float_weights={})
    assert shown in content and kind in content
    assert ("card good" in content) == (kind == "card good")
    assert "stripped before the hand-over" not in content


def test_regression(tmp_path: Path) -> None:
    scores = {"negative_mse": -0.0125}
    run = {**small_run()["summary"], "metric": "negative_mse", "float": scores, "clean": {"negative_mse": -0.025}}
    records = [{"epoch": 1, "loss": 0.5, "negative_mse": -0.5}]
    content = written(tmp_path, summary=run, history=records, target=np.random.default_rng(0).normal(size=400))
    assert "0.0125 → 0.025" in content and "2 times the float model" in content
    assert "mis-tag" not in content and "mean squared error, validation" in content


@pytest.mark.parametrize("classes", [1, 2, 12])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    content = written(tmp_path, **{**small_run(("only",), classes), "history": []})
    assert content.count("AUC float") == {1: 1, 2: 1, 12: 10}[classes]
    assert ("first 10 of 12 classes" in content) == (classes == 12)
    assert "Training curves" not in content


def test_many_layers_and_rows(tmp_path: Path) -> None:
    run = small_run(tuple(f"blocks.{number}.conv" for number in range(50)), 5, 200_000)
    content = written(tmp_path, **run)
    assert len(content) < 3_000_000
    assert "largest 40 of 50 layers" in content and "largest 12 of 50 layers" in content
    assert all(f'<td class="c">blocks.{number}.conv</td>' in content for number in range(50))


def test_odd_values(tmp_path: Path) -> None:
    run = small_run(("huge", "none", "broken", "empty"))
    run["weights"] = {
        "huge": np.array([[1e30, -1e30]]),
        "none": np.zeros((3, 3)),
        "broken": np.array([np.nan, np.inf, 1.0]),
        "empty": np.zeros((0, 4)),
    }
    sizes = [1_000_000, 3, float("nan"), None]
    for record, size in zip(run["summary"]["layers"], sizes, strict=True):
        record["weights"] = size
    run["summary"].update(keep_ratio=float("nan"), ebops=None, float=None, passes=None, seconds="soon")
    run["scores"]["clean"][:7] = np.nan
    run["history"] = [{"epoch": 1, "loss": 1e300, "keep_ratio": float("inf"), "beta": float("nan")}]
    content = written(tmp_path, **run)
    assert "7 rows are left out" in content


def test_nothing_at_all(tmp_path: Path) -> None:
    empty = np.zeros(0)
    content = written(tmp_path, summary={}, history=[], weights={}, float_weights={}, target=empty, scores={})
    assert "<svg" not in content


def test_phases_and_controls() -> None:
    found = curves.phases(history())
    assert [(stretch.stage, stretch.round, stretch.epochs) for stretch in found] == [
        ("pretraining", 0, [1, 2, 3]),
        ("training", 0, [4, 5, 6]),
        ("training", 1, [7, 8, 9]),
        ("fine-tuning", 0, [10, 11, 12]),
    ]
    assert curves.controls(history(), "accuracy") == ["beta"]


STEPS = [
    {"step": None, "value": 1.0, "length": 0.0, "pruned": 0.0, "bits": {"fc1": 32, HOSTILE: 32}},
    {"step": "fc1", "value": 0.5, "length": 0.1, "pruned": 0.0, "bits": {"fc1": 8, HOSTILE: 32}},
    {"step": "prune", "value": 0.25, "length": 0.3, "pruned": 0.4, "bits": {"fc1": 8, HOSTILE: 32}},
]


def test_the_way_of_a_search(tmp_path: Path) -> None:
    """The goal, where it ended, and a line for each layer, whatever its name."""
    found = {"goal": {"rate": 0.3}, "rate": 0.25, "search": "beam:8", "expansions": 1234, "path": STEPS}
    run = small_run()
    run["summary"]["fit"] = found
    html = page.write(tmp_path, **run).read_text()
    assert "Search for bits and masks" in html
    assert "beam:8 search for rate of at most 0.3: 0.25 after 1,234 expansions." in html
    assert "<script" not in html
    drawing = fit.path(found)
    assert "stored bits against float32" in drawing
    assert drawing.count("fc1") == 1
    assert fit.path({**found, "path": STEPS[:1]}) == ""
    assert fit.section(None) == ""


def test_number_formats() -> None:
    assert markup.percent(0.68184) == "68.18\N{NO-BREAK SPACE}%"
    assert markup.percent(0.000123) == "0.012\N{NO-BREAK SPACE}%"
    assert markup.points(-0.0067) == f"{MINUS}0.67\N{NO-BREAK SPACE}points"
    assert markup.points(-1e-9) == "0.00\N{NO-BREAK SPACE}points"
    assert markup.points(0.01) == "+1.00\N{NO-BREAK SPACE}points"
    assert (markup.real(-0.0), markup.real(1 / 3, 3), markup.count("12.0")) == ("0", "0.333", "12")
    assert markup.real(float("nan")) == markup.count(None) == markup.percent("x") == "\N{EN DASH}"
    assert markup.plain("a" * 30, 9) == "aaaa…aaaa"
