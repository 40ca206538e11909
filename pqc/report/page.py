"""Write the report of a run: one HTML page, its plots inside, without scripts or links to elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqc import files
from pqc.report import curves, fit, markup, plots, roc, sections

NAME = "report.html"

# The policy lets the page load nothing and run nothing, whatever a model file's names hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

CSS = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5b6670; --line: #d9dee2; --page: #ffffff;
  --panel: #f5f7f8; --good: #1a7f4b; --bad: #c02a1b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --soft: #9aa6b0; --line: #363d43; --page: #15191c;
  --panel: #1e2327; --good: #5ecb92; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Verdana, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.sub, section p, summary { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0 0; }
.card { background: var(--panel); border: 1px solid var(--line); border-left: 4px solid var(--line);
  border-radius: 6px; padding: .7rem .9rem; overflow-wrap: anywhere; }
.card.good { border-left-color: var(--good); } .card.good .value { color: var(--good); }
.card.bad { border-left-color: var(--bad); } .card.bad .value { color: var(--bad); }
.label, .detail { font-size: .82rem; color: var(--soft); }
.value { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } th.r, td.r { text-align: right; }
td.r { white-space: nowrap; }
td.c { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .95em;
  overflow-wrap: anywhere; min-width: 7rem; max-width: 30rem; }
tfoot td { font-weight: 600; border-bottom: 0; }
summary { cursor: pointer; }
svg { display: block; width: 100%; height: auto; margin: .6rem 0; }
/* Verdana is as wide as DejaVu Sans, which the plots were measured with. */
svg text { font-family: "DejaVu Sans", Verdana, Geneva, sans-serif !important; }
"""


def write(
    folder: Path,
    summary: dict[str, Any],
    history: list[dict[str, Any]],
    *,
    weights: dict[str, np.ndarray],
    float_weights: dict[str, np.ndarray],
    target: np.ndarray,
    scores: dict[str, np.ndarray],
    class_names: Sequence[str] = (),
) -> Path:
    """Write `report.html` into `folder` and return its path.

    Args:
        folder: made if missing.
        summary: the run in numbers, as in `summary.json`; what is missing is left out of the page.
        history: a record for each epoch; may be empty.
        weights: each layer's weight as it acts in the clean model: masked and quantized.
        float_weights: the float model's.
        target: [rows] class numbers, marks, or values, for which there are no ROC curves.
        scores: [rows, classes] logits, probabilities or anomaly scores of the models `float` and `clean`.
        class_names: names of the classes, in order.

    Raises:
        PqcError: the page cannot be written.
    """
    parts = [
        _title(summary),
        sections.cards(summary),
        sections.accuracies(summary),
        _layers(summary),
        fit.section(summary.get("fit")),
        _training(summary, history),
        _front(summary),
        _weights(weights, float_weights),
        "" if summary.get("metric") == "negative_mse" and target.dtype != bool else _roc(target, scores, class_names),
        sections.precisions(summary),
        markup.section("What is compared", sections.head(summary)),
        sections.passes(summary),
        sections.run_facts(summary),
    ]
    path = folder / NAME
    files.write_text(path, document(markup.plain(summary.get("model", "model")), "".join(parts)))
    return path


def document(title: str, body: str) -> str:
    """A page that stands on its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.text(title)} · pqc report</title>\n<style>{CSS}</style></head>\n"
        f"<body>\n{body}</body></html>\n"
    )


def _title(summary: Mapping[str, Any]) -> str:
    facts = [f"{name} {summary[name]}" for name in ("schedule", "data") if summary.get(name)]
    below = markup.text(" · ".join(["pqc report", *facts]))
    return f'<header><h1>{markup.text(summary.get("model", "model"))}</h1>\n<div class="sub">{below}</div></header>\n'


def _layers(summary: Mapping[str, Any]) -> str:
    layers = summary.get("layers") or []
    return markup.section(
        "Layers",
        plots.weights_per_layer(layers),
        _capped(len(layers), plots.MOST_BARS, "layers"),
        sections.bits(summary),
    )


def _training(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    metric = str(summary.get("metric", "accuracy"))
    names = curves.controls(history, metric)
    return markup.section(
        "Training",
        curves.training(history, metric),
        _capped(len(names), curves.MOST_CONTROLS, "controls", "first"),
    )


def _front(summary: Mapping[str, Any]) -> str:
    points = summary.get("front") or []
    note = f"{len(points)} epochs that no other beats in both; clean models of some are in the folder front."
    return markup.section(
        "Pareto front",
        plots.pareto_front(points, str(summary.get("metric", "accuracy"))),
        markup.paragraph(note if len(points) > 1 else ""),
    )


def _weights(weights: Mapping[str, np.ndarray], float_weights: Mapping[str, np.ndarray]) -> str:
    return markup.section(
        "Weights",
        plots.histograms(weights, float_weights),
        _capped(len(weights), plots.MOST_HISTOGRAMS, "layers"),
    )


def _roc(target: np.ndarray, scores: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    tags = roc.one_vs_rest(target, scores, names)
    left_out = int(np.count_nonzero(~roc.complete(scores))) if tags else 0
    note = "One class against the rest, ranked by the class's odds. Dashed: float model; solid: clean model."
    return markup.section(
        "Efficiency and mis-tag rate",
        plots.roc_curves(tags),
        markup.paragraph(note if tags else ""),
        markup.paragraph(f"{markup.count(left_out)} rows are left out: a score is not finite." if left_out else ""),
        _capped(len(tags), plots.MOST_CLASSES, "classes", "first"),
    )


def _capped(found: int, most: int, things: str, which: str = "largest") -> str:
    """A note where a plot does not show everything."""
    return markup.paragraph(f"The plot shows the {which} {most} of {found} {things}." if found > most else "")
