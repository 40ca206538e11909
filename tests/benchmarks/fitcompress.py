"""Compare the search for bit widths and masks with uniform widths and magnitude pruning, at equal compression rates.

    python tests/benchmarks/fitcompress.py --seeds 0 1 2

Both sides start from the same float network, train for the same epochs on the same rows, and choose among a few
settings: for each rate, every setting is trained with seed 0, and the one with the best validation metric is trained
with the other seeds. The rate is the stored bits of what is not zero, with signs and without indices, against float32; it
is measured on the clean model. A run is not repeated once its summary is in build/fitcompress. The table goes into
docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results_page

HERE = Path(__file__).parents[2]
BEGIN, END = "<!-- fitcompress: written by tests/benchmarks/fitcompress.py -->", "<!-- end of fitcompress -->"
OUT = HERE / "build" / "fitcompress"


@dataclass(frozen=True)
class Network:
    """A reference model, the schedule that both sides train it by, and the epochs of both.

    Args:
        model: as the command line takes it; likewise `schedule`.
        epochs: in which masks grow, in the schedule's own way; the search needs none.
        rates: of the table.
    """

    model: str
    schedule: str
    epochs: tuple[int, int]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """One of the settings that a side chooses from.

    Args:
        side: `uniform`, one width for all weights and gradual magnitude pruning, or `search`.
        name: for the table.
        bits: of the uniform weights.
        share: take only how much is pruned from the search, and let gradual magnitude pruning find the masks.
    """

    side: str
    name: str
    bits: int = 0
    share: bool = False

    def changes(self, network: Network, rate: float) -> dict[str, str] | None:
        """The schedule's keys, or None where the rate cannot be reached."""
        growing, still = network.epochs
        if self.side == "search" and not self.share:
            growing, still = 0, growing + still
        found = {"phases.training.epochs": str(growing), "phases.fine_tuning.epochs": str(still)}
        if self.side == "search":
            search = {"goal": {"rate": rate}, "keep_masks": not self.share, **SEARCH}
            method = "magnitude, options: {when: gradual}" if self.share else "null"
            return {**found, "phases.fit": json.dumps(search), "pruning": f"{{method: {method}}}"}
        sparsity = 1 - 32 * rate / self.bits
        if sparsity < 0:
            return None
        found["quantization.weights"] = f"[1, 0, {self.bits - 1}]"
        found["pruning"] = f"{{method: magnitude, options: {{sparsity: {sparsity:.6f}, when: gradual}}}}"
        return found


NETWORKS = (
    Network("jet_tagger", "cs-demo", (40, 60), (0.1, 0.04, 0.007)),
    Network("resnet20", "resnet20", (15, 15), (0.1, 0.03)),
)
SEARCH = {"prune": True, "widths": [7, 6, 5, 4, 3], "sparsities": {"end": -2}}
"""Widths and shares of the reference's own configuration of the method."""
SETTINGS = (
    *(Setting("uniform", f"{bits} bits", bits) for bits in (8, 6, 5)),
    Setting("search", "greedy"),
    Setting("search", "greedy, share only", share=True),
)


def run(network: Network, setting: Setting, rate: float, seed: int) -> dict[str, Any] | None:
    """The figures of one run, or None where the rate cannot be reached."""
    changes = setting.changes(network, rate)
    if changes is None:
        return None
    words = f"{network.model} {setting.side} {setting.name} {rate} {seed}"
    folder = OUT / "".join(letter if letter.isalnum() or letter == "." else "-" for letter in words)
    if not (folder / "summary.json").exists():
        from pqc import workflows

        source = workflows.resolve(network.model)
        plan = workflows.load_plan(network.schedule, source, {**changes, "training.seed": str(seed)})
        workflows.run(source, plan, None, folder, workflows.RunOptions(hls=False))
    summary = json.loads((folder / "summary.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    metric, layers = summary["metric"], summary["layers"]
    bits = sum(layer["nonzero"] * layer["bits_weight"] for layer in layers)
    return {
        "float": summary["float"][metric],
        "test": summary["clean"][metric],
        "validation": history[-1][metric],
        "rate": bits / (32 * sum(layer["weights"] for layer in layers)),
        "keep": summary["keep_ratio"],
        "ebops": summary["ebops"],
        "exact": summary["clean_equals_trained"],
    }


def chosen(network: Network, side: str, rate: float) -> Setting:
    """The setting of a side with the best validation metric."""
    found = [(one, run(network, one, rate, 0)) for one in SETTINGS if one.side == side]
    return max(((result["validation"], one) for one, result in found if result is not None), key=lambda pair: pair[0])[
        1
    ]


def rows(network: Network, seeds: list[int]) -> Iterator[str]:
    """The lines of a network."""
    for rate in network.rates:
        for side in ("uniform", "search"):
            setting = chosen(network, side, rate)
            found = [one for seed in seeds if (one := run(network, setting, rate, seed)) is not None]
            assert all(one["exact"] for one in found)
            test = spread([100 * one["test"] for one in found])
            parts = [np.mean([one[key] for one in found]) for key in ("rate", "keep", "ebops", "float")]
            yield (
                f"| {network.model} ({100 * parts[3]:.2f} %) | {rate:g} | {side}: {setting.name} | {test} "
                f"| {parts[0]:.4f} | {100 * parts[1]:.1f} | {parts[2]:,.0f} |"
            )


def tried(network: Network) -> Iterator[str]:
    """What every setting gave with seed 0: test accuracy, and in brackets the validation accuracy that decides."""
    for rate in network.rates:
        found = [(one, run(network, one, rate, 0)) for one in SETTINGS]
        parts = [
            f"{one.name} {100 * result['test']:.2f} ({100 * result['validation']:.2f})"
            for one, result in found
            if result is not None
        ]
        yield f"{network.model}, {rate:g}: {'; '.join(parts)}."


def spread(values: list[float]) -> str:
    """Mean and half the range."""
    return f"{np.mean(values):.2f} ± {np.ptp(values) / 2:.2f}"


def main() -> None:
    """Run what has not run yet, and write the block of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", help="only these; the page is left alone then")
    options = parser.parse_args()
    networks = [one for one in NETWORKS if not options.models or one.model in options.models]
    head = ["model (float)", "rate at most", "settings", "accuracy (%)", "rate", "weights left (%)", "EBOPs"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [line for network in networks for line in rows(network, options.seeds)]
    lines += ["", "Every setting with seed 0, test and (validation) accuracy in per cent:", ""]
    lines += [f"- {line}" for network in networks for line in tried(network)]
    text = "\n".join([f"Seeds {', '.join(map(str, options.seeds))}; mean and half the range.", "", *lines])
    print(text)
    if not options.models:
        results_page.write(BEGIN, END, text)


if __name__ == "__main__":
    main()
