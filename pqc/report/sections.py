"""The parts of the report that are text and tables, each as HTML; empty where the run has nothing to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pqc.metrics import SHARES
from pqc.report import markup

Summary = Mapping[str, Any]

MODELS = {
    "float": ("float model", "as it was given, weights in float32"),
    "trained": ("trained model", "with its masks and quantizers in place"),
    "clean": ("clean model", "masks folded, training parts stripped"),
    "hls": ("firmware", "the C++ of hls4ml, compiled and emulated"),
}
LAYER_COLUMNS = (
    *("layer", "operator", "shape", "weights", "not zero"),
    *("remaining", "weight bits", "bias bits", "input bits", "EBOPs"),
)
FOLD_ABOVE = 24
"""Tables with more rows are folded."""


def score(summary: Summary, model: str) -> float | None:
    """A model's metric: accuracy, or mean squared error (the negative of what training maximizes)."""
    name = str(summary.get("metric", "accuracy"))
    found = markup.number((summary.get(model) or {}).get(name))
    return found if found is None or is_accuracy(summary) else 0.0 - found


def is_accuracy(summary: Summary) -> bool:
    """Whether the metric is accuracy, or another share told in per cent."""
    return summary.get("metric", "accuracy") in SHARES


def metric_title(metric: str) -> str:
    """What a metric is called on the page."""
    return metric.replace("_", " ") if metric in SHARES else "mean squared error"


def _score_text(summary: Summary, value: float | None) -> str:
    return markup.percent(value) if is_accuracy(summary) else markup.real(value, 5)


def _change(summary: Summary, value: float | None) -> str:
    """How far a score is from the float model's."""
    reference = score(summary, "float")
    if value is None or reference is None:
        return markup.NOTHING
    if is_accuracy(summary):
        return markup.points(value - reference)
    return f"{markup.real(value / reference, 4)} times" if reference else markup.real(value - reference, 4)


def cards(summary: Summary) -> str:
    """The headline numbers."""
    before, after = score(summary, "float"), score(summary, "clean")
    label = metric_title(str(summary.get("metric", "accuracy")))
    layers = summary.get("layers") or []
    kept, total = _sum(layers, "nonzero"), summary.get("weights", _sum(layers, "weights"))
    return (
        '<div class="cards">\n'
        + markup.card(
            f"{label}, float → clean",
            f"{_score_text(summary, before)} → {_score_text(summary, after)}",
            f"{_change(summary, after)}{'' if is_accuracy(summary) else ' the float model'}",
        )
        + markup.card(
            "remaining weights",
            markup.percent(summary.get("keep_ratio")),
            f"{markup.count(kept)} of {markup.count(total)}" if layers else "",
        )
        + markup.card("EBOPs", markup.count(summary.get("ebops")), "effective bit operations")
        + verdict(summary)
        + "</div>\n"
    )


def verdict(summary: Summary) -> str:
    """Whether the firmware computes what the clean model computes."""
    label = "bit-exactness of the firmware"
    hls = summary.get("hls") or {}
    mismatches, samples = markup.number(hls.get("mismatches")), markup.number(hls.get("samples"))
    if mismatches is None or not samples:
        return markup.card(label, "not run", markup.plain(hls.get("skipped", "no emulation in this run")))
    difference = markup.number(hls.get("max_difference", 0.0))
    exact = mismatches == 0 and difference == 0
    noun = "mismatch" if mismatches == 1 else "mismatches"
    return markup.card(
        label,
        f"{markup.count(mismatches)} {noun}",
        f"in {markup.count(samples)} samples; largest difference {markup.real(difference)}",
        "good" if exact else "bad",
    )


def accuracies(summary: Summary) -> str:
    """The score of each model along the way."""
    name = metric_title(str(summary.get("metric", "accuracy")))
    rows = []
    for model, (title, detail) in MODELS.items():
        value = score(summary, model)
        change = markup.NOTHING if model == "float" else _change(summary, value)
        rows.append((title, detail, _score_text(summary, value), change))
    return markup.section(
        "Four models, one network",
        markup.table(("model", "what it is", name, "against float"), "llrr", rows),
        markup.paragraph(_firmware_note(summary)),
    )


def _firmware_note(summary: Summary) -> str:
    hls = summary.get("hls") or {}
    if not hls:
        return "The firmware was not built in this run."
    if "skipped" in hls:
        return f"The firmware was not built: {hls['skipped']}"
    parts = [
        f"The firmware was emulated on {markup.count(hls.get('samples'))} samples",
        f"hls4ml backend {hls['backend']}" if hls.get("backend") else "",
        str(hls.get("io_type") or ""),
        f"project in {hls['folder']}/" if hls.get("folder") else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def head(summary: Summary) -> str:
    """What became of the last activation."""
    operator = (summary.get("hls") or {}).get("head")
    if not operator:
        return ""
    return markup.paragraph(
        f"The head, {operator}, is stripped before the hand-over, for it changes no decision. So the firmware "
        "returns logits, and logits are what is compared."
    )


def bits(summary: Summary) -> str:
    """Each layer's shape, remaining weights, bits and EBOPs."""
    layers = summary.get("layers") or []
    kept, total = _sum(layers, "nonzero"), _sum(layers, "weights")
    share = markup.percent(kept / total if total else None)
    last = ("all", "", "", markup.count(total), markup.count(kept), share, "", "", "")
    rows = [_layer(layer) for layer in layers]
    content = markup.table(LAYER_COLUMNS, "cllrrrrrrr", rows, (*last, markup.count(_sum(layers, "ebops"))))
    note = "32 bits stand for float32; a dash stands where there is no bias." if content else ""
    return fold_long(f"{len(rows)} layers", rows, content) + markup.paragraph(note)


def _layer(layer: Summary) -> tuple[Any, ...]:
    total, nonzero = markup.number(layer.get("weights")), markup.number(layer.get("nonzero"))
    return (
        layer.get("name"),
        layer.get("operator"),
        "\N{MULTIPLICATION SIGN}".join(str(size) for size in layer.get("shape") or ()),
        markup.count(total),
        markup.count(nonzero),
        markup.percent(nonzero / total if total and nonzero is not None else None),
        markup.count(layer.get("bits_weight")),
        markup.count(layer.get("bits_bias") or None),
        markup.count(layer.get("bits_input")),
        markup.count(layer.get("ebops")),
    )


def _sum(layers: Sequence[Summary], key: str) -> float:
    return sum(markup.number(layer.get(key)) or 0.0 for layer in layers)


def precisions(summary: Summary) -> str:
    """The fixed-point types derived for the firmware, and the values they must hold."""
    found = summary.get("precisions") or []
    rows = [
        (
            entry.get("layer"),
            entry.get("operator"),
            entry.get("tensor"),
            entry.get("type"),
            markup.real(entry.get("low")),
            markup.real(entry.get("high")),
        )
        for entry in found
    ]
    header = ("layer", "operator", "tensor", "type", "lowest value", "highest value")
    content = markup.table(header, "cllcrr", rows)
    note = "Each type is derived from the interval of the values that can occur." if rows else ""
    return markup.section(
        "Derived precisions",
        markup.paragraph(note),
        fold_long(f"{len(rows)} types", rows, content),
    )


def passes(summary: Summary) -> str:
    """What each pass changed, and what it did to the outputs."""
    rows = [
        (
            step.get("text"),
            markup.count(step.get("changed")),
            markup.seconds(step.get("seconds")),
            "not measured" if step.get("difference") is None else markup.real(step["difference"], 3),
        )
        for step in summary.get("passes") or []
    ]
    content = markup.table(("pass", "places changed", "time", "difference of the outputs"), "crrr", rows)
    note = "A difference is the largest of an output's, over its largest magnitude." if rows else ""
    return markup.section("Passes", fold_long(f"{len(rows)} passes", rows, content), markup.paragraph(note))


def run_facts(summary: Summary) -> str:
    """Seed, device, times and versions."""
    facts = [
        ("data", summary.get("data")),
        ("schedule", summary.get("schedule")),
        ("seed", summary.get("seed")),
        ("device", summary.get("device")),
        ("threads", summary.get("threads")),
        ("time, total", markup.seconds(summary.get("seconds"))),
    ]
    facts += [(f"time, {name}", markup.seconds(value)) for name, value in (summary.get("timings") or {}).items()]
    facts += [(f"version, {name}", value) for name, value in (summary.get("versions") or {}).items()]
    known = [fact for fact in facts if fact[1] not in (None, "", markup.NOTHING)]
    return markup.section("How it was run", markup.table(("what", "value"), "lc", known))


def fold_long(title: str, rows: Sequence[Any], content: str) -> str:
    """A long table behind a line that opens it."""
    return markup.folded(title, content) if len(rows) > FOLD_ABOVE else content
