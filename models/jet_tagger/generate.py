"""Generate the jet-tagging data: simulated jets of five classes, standardized and split.

`python -m pqc.models.jet_tagger.generate --out DIR` writes `train.npz`, `test.npz` and
`standardization.json`; see `DATASHEET.md`. A run that was interrupted goes on where it stopped:
finished parts lie in `DIR/parts` until the end.
"""

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqc import files

from .observables import FEATURES, Floats
from .simulate import CLASSES, COMMON, DETECTOR, PROCESSES, SELECTION, simulate_jets

Labels = NDArray[np.uint8]
Simulate = Callable[[str, int, int], NDArray[Any]]
"""What describes `count` jets of a class from a seed: (label, seed, count) to one row a jet."""

PACKAGES = ("pythia8mc", "fastjet", "awkward", "numpy")
SPLITS = ("train", "test")
JETS_PER_PART = 2_000
# Seeds are seed * 10,000 + split * 5,000 + class * 1,000 + part: no two parts share one.
PARTS_PER_CLASS = 1_000
MAX_JETS = JETS_PER_PART * PARTS_PER_CLASS * len(CLASSES)
# Pythia takes seeds up to 900,000,000.
MAX_SEED = 89_999


@dataclass(frozen=True)
class Part:
    """One unit of work: `count` jets of one class of one split, from one Pythia seed."""

    split: str
    label: str
    seed: int
    count: int

    def path(self, directory: Path) -> Path:
        """Return where the part lies once finished; the name holds all that sets its events."""
        return directory / f"{self.split}-{self.label}-{self.seed}-{self.count}.npz"


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--train", type=click.IntRange(5, MAX_JETS), default=80_000, show_default=True)
@click.option("--test", type=click.IntRange(5, MAX_JETS), default=20_000, show_default=True)
@click.option("--seed", type=click.IntRange(1, MAX_SEED), default=1, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
def main(out: Path, train: int, test: int, seed: int, jobs: int) -> None:
    """Simulate --train and --test jets, a fifth of each class, and write them to --out."""
    require_packages()
    parts = plan("train", train, seed) + plan("test", test, seed)
    directory = out / "parts"
    directory.mkdir(parents=True, exist_ok=True)
    simulate_parts(parts, directory, jobs)
    write_dataset(parts, directory, out, seed)
    click.echo(f"{train} training and {test} test jets in {out}")


def require_packages() -> None:
    """End with one line that names the extra when a package for the simulation is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"the jet generator needs {', '.join(missing)}: pip install 'pqc[jets]'")


def plan(split: str, jets: int, seed: int) -> list[Part]:
    """Divide the jets of a split into parts, an equal number of every class."""
    if jets % len(CLASSES):
        message = f"{jets} is not a multiple of {len(CLASSES)}"
        raise click.BadParameter(message, param_hint=f"--{split}")
    parts: list[Part] = []
    for place, label in enumerate(CLASSES):
        first = seed * 10_000 + SPLITS.index(split) * 5_000 + place * 1_000
        starts = range(0, jets // len(CLASSES), JETS_PER_PART)
        for number, start in enumerate(starts):
            count = min(JETS_PER_PART, jets // len(CLASSES) - start)
            parts.append(Part(split, label, first + number, count))
    return parts


def simulate_parts(parts: list[Part], directory: Path, jobs: int, simulate: Simulate = simulate_jets) -> None:
    """Simulate the parts that `directory` lacks, in `jobs` processes, under a progress bar."""
    settings = json.dumps(describe_settings())
    missing = [part for part in parts if not _is_finished(part.path(directory), settings)]
    columns = (TextColumn("jets"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Pythia and FastJet hold global state, so that even one job gets a process of its own.
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        done = sum(part.count for part in parts) - sum(part.count for part in missing)
        task = progress.add_task("jets", total=sum(part.count for part in parts), completed=done)
        work = {pool.submit(simulate_part, part, directory, settings, simulate): part for part in missing}
        try:
            for future in as_completed(work):
                future.result()
                progress.advance(task, work[future].count)
        except BaseException:
            # Leaving the pool alone would first work through its queue, for up to half an hour.
            pool.shutdown(cancel_futures=True)
            raise


def simulate_part(part: Part, directory: Path, settings: str, simulate: Simulate) -> None:
    """Simulate one part and write it to `directory`, marked with the settings it was made with."""
    jets = simulate(part.label, part.seed, part.count)
    files.write_compressed(part.path(directory), {"jets": jets, "settings": np.array(settings)})


def _is_finished(path: Path, settings: str) -> bool:
    if not path.exists():
        return False
    with np.load(path) as part:
        return bool(part["settings"] == settings)


def write_dataset(parts: list[Part], directory: Path, out: Path, seed: int) -> None:
    """Join the parts, standardize by the training jets, write the three files, drop the parts."""
    train, train_labels = join(parts, "train", directory, seed)
    test, test_labels = join(parts, "test", directory, seed)
    mean, std = train.mean(axis=0), train.std(axis=0)

    files.write_compressed(out / "train.npz", {"x": ((train - mean) / std).astype(np.float16), "y": train_labels})
    files.write_compressed(out / "test.npz", {"x": ((test - mean) / std).astype(np.float16), "y": test_labels})
    record = {"features": list(FEATURES), "classes": list(CLASSES), "mean": mean.tolist(), "std": std.tolist()}
    write_record(record, parts, out, seed)
    drop_parts(parts, directory)


def write_record(record: dict[str, Any], parts: list[Part], out: Path, seed: int) -> None:
    """Write `standardization.json`: what is given, and all that sets the sample."""
    counts = {split: sum(part.count for part in parts if part.split == split) for split in SPLITS}
    full = {**record, "jets": counts, "seed": seed, "pythia_seeds": _seeds(parts), **describe_settings()}
    text = json.dumps(full, indent=2) + "\n"
    files.write_text(out / "standardization.json", text)


def drop_parts(parts: list[Part], directory: Path) -> None:
    """Remove the finished parts, now that the dataset holds them."""
    for part in parts:
        part.path(directory).unlink()
    if not any(directory.iterdir()):
        directory.rmdir()


def join(parts: list[Part], split: str, directory: Path, seed: int) -> tuple[Floats, Labels]:
    """Return the jets (N, ...) and classes (N,) of a split, shuffled."""
    chosen = [part for part in parts if part.split == split]
    jets = np.concatenate([np.load(part.path(directory))["jets"] for part in chosen])
    counts = [part.count for part in chosen]
    classes = np.array([CLASSES.index(part.label) for part in chosen], dtype=np.uint8)
    order = np.random.default_rng((seed, SPLITS.index(split))).permutation(len(jets))
    return jets[order], np.repeat(classes, counts)[order]


def _seeds(parts: list[Part]) -> dict[str, dict[str, list[int]]]:
    """Return the seeds of every split and class."""
    return {
        split: {label: [part.seed for part in parts if (part.split, part.label) == (split, label)] for label in CLASSES}
        for split in SPLITS
    }


def describe_settings() -> dict[str, Any]:
    """Return all that sets the physics of the sample, and the versions of what simulates it."""
    return {
        "pythia_settings": {"all": list(COMMON), **{k: list(v) for k, v in PROCESSES.items()}},
        "detector": asdict(DETECTOR),
        "selection": asdict(SELECTION),
        "jets_per_part": JETS_PER_PART,
        "versions": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
