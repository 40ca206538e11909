"""Measure how many workers one storage of a search carries.

    python tests/benchmarks/search_storage.py --trial-seconds 10 --epochs 20 [--url postgresql+pg8000://user@host/db]

Without a pruner only the process that leads the search writes: a trial costs it one `ask` and one `tell`. With one, every
worker also stores each epoch and reads what the others stored. Both are timed on a study that has `--trials` trials
already, with a cheap sampler, so that the storage is what is measured. A storage carries as many workers as trials last
longer than they keep it busy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

from pqc.search.request import Tool, read
from pqc.search.study import Place, Study
from pqc.search.trials import Outcome
from pqc.search.watch import Watch

SPACE = """\
schedule: cs-demo
parameters:
  training.learning_rate: {float: [1.0e-3, 2.0e-2], log: true}
  training.batch: {int: [256, 1024]}
  target.sparsity: {float: [0.5, 0.95]}
objectives: accuracy
sampler: random
trials: 1000000
"""
PRUNER = Tool(name="median")


def cycles(study: Study, count: int) -> float:
    """Seconds for one trial to begin and to end."""
    started = time.perf_counter()
    for _ in range(count):
        number, _ = study.ask()
        study.tell(number, Outcome("complete", {"accuracy": 0.5}, 1.0))
    return (time.perf_counter() - started) / count


def reporting(place: Place, number: int, seconds: float, done: multiprocessing.Queue[tuple[int, float]]) -> None:
    """Store and compare epochs of one trial, as fast as can be, for so many seconds."""
    trial = Watch(place, PRUNER, "accuracy").trial(number)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        count += 1
        trial.is_hopeless({"accuracy": 0.5}, count)
    done.put((count, time.perf_counter() - started))


def rate(place: Place, numbers: list[int], seconds: float) -> float:
    """Epochs that all processes together store and compare in a second."""
    context = multiprocessing.get_context("spawn")
    done: multiprocessing.Queue[tuple[int, float]] = context.Queue()
    workers = [context.Process(target=reporting, args=(place, number, seconds, done)) for number in numbers]
    for worker in workers:
        worker.start()
    found = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(count / spent for count, spent in found)


def measure(label: str, url: str | None, folder: Path, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    space = folder / "space.yaml"
    space.write_text(SPACE)
    place = Place(folder / f"{label}-{time.time_ns()}", url)
    study = Study.create(place, read(space, "", {}))
    cycles(study, arguments.trials)
    cycle = cycles(study, 20)
    numbers = [study.ask()[0] for _ in range(arguments.processes)]
    epochs = rate(place, numbers, arguments.seconds)
    alone = arguments.trial_seconds / cycle
    together = arguments.trial_seconds / (cycle + arguments.epochs / epochs)
    return f"| {label} | {1000 * cycle:.1f} | {epochs:.0f} | {alone:.0f} | {together:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial-seconds", type=float, default=10.0, help="how long a trial trains")
    parser.add_argument("--epochs", type=int, default=20, help="of a trial, each stored where there is a pruner")
    parser.add_argument("--trials", type=int, default=300, help="how many trials the study has already")
    parser.add_argument("--processes", type=int, default=2, help="that store epochs at a time")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which they do")
    parser.add_argument("--url", action="append", default=[], help="a database to measure, too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="search-storage-"))
    storages = [("journal", None), ("sqlite", f"sqlite:///{folder}/study.db")]
    storages += [(url.partition(":")[0], url) for url in arguments.url]
    print("| storage | trial: ask and tell (ms) | epochs a second | workers | workers with a pruner |")
    print("|---|---|---|---|---|")
    for label, url in storages:
        print(measure(label, url, folder, arguments), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
