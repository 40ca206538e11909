"""Time one training step of the jet tagger in HGQ2 on JAX, one thread. Runs under the peers' Python.

    .venv-hgq/bin/python tests/benchmarks/peers/hgq2_jax.py

The network (16-64-32-32-5) trains the bits of every weight, every bias and every element that enters a layer, with the
effective bit operations in the loss at a constant strength, cross entropy and Adam, on batches picked from a resident
array by index. A step is timed in four ways, and a comparison is against the fastest:

    pure            one jitted pure function (`stateless_call`, `stateless_apply`), buffers donated, loss awaited
    scan            the same in a `lax.scan` over the steps of a block; the time is the block's by its steps
    train_on_batch  Keras's own call on the rows
    fit             Keras's own loop over an epoch of resident rows; the time is the epoch's by its steps

Each measurement is a line of JSON: minimum and median in microseconds. With --worker the program answers requests
`batch steps` on standard input with the times of the first of --way, so that a comparison can alternate with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from hgq2_model import Bits, adam, build, pure_step, state_of, threads, versions  # isort: skip

import jax
import jax.numpy as jnp
import keras
import numpy as np

ROWS = 20_000
WARM_UP = 20
BLOCK = 50
LEARNING_RATE = 1e-3
BETA = 1e-6
Timer = Callable[[int], list[float]]
"""From a number of steps to their times in microseconds."""


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [ROWS, 16] and labels [ROWS], as in the comparison with the other reference."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 16)).astype(np.float32), rng.integers(0, 5, ROWS).astype(np.int32)


def rows_of(batch: int) -> Iterator[np.ndarray]:
    """Row numbers of one batch after the other."""
    rng = np.random.default_rng(1)
    while True:
        yield rng.integers(0, ROWS, batch).astype(np.int32)


def pure(batch: int, bits: Bits) -> Timer:
    """One call of a jitted step at a time."""
    model = build(bits, beta=BETA)
    optimizer = adam(model, LEARNING_RATE)
    x, y = (jnp.asarray(array) for array in arrays())
    step = pure_step(model, optimizer)
    jitted = jax.jit(lambda state, x, y, rows: step(state, x[rows], y[rows]), donate_argnums=0)
    state, batches = state_of(model, optimizer), rows_of(batch)

    def timer(steps: int) -> list[float]:
        nonlocal state
        times = []
        for _ in range(steps):
            rows = next(batches)
            start = time.perf_counter()
            state, loss = jitted(state, x, y, rows)
            loss.block_until_ready()
            times.append(1e6 * (time.perf_counter() - start))
        jax.block_until_ready(state)
        return times

    return timer


def scan(batch: int, bits: Bits) -> Timer:
    """A block of steps in one call."""
    model = build(bits, beta=BETA)
    optimizer = adam(model, LEARNING_RATE)
    x, y = (jnp.asarray(array) for array in arrays())
    step = pure_step(model, optimizer)
    jitted = jax.jit(
        lambda state, x, y, rows: jax.lax.scan(lambda state, rows: step(state, x[rows], y[rows]), state, rows),
        donate_argnums=0,
    )
    state, batches = state_of(model, optimizer), rows_of(batch)

    def timer(steps: int) -> list[float]:
        nonlocal state
        times = []
        for _ in range(-(-steps // BLOCK)):
            rows = np.stack([next(batches) for _ in range(BLOCK)])
            start = time.perf_counter()
            state, loss = jitted(state, x, y, rows)
            loss.block_until_ready()
            times.append(1e6 * (time.perf_counter() - start) / BLOCK)
        return times

    return timer


def compiled(bits: Bits, **options: int) -> keras.Model:
    """The model with Keras's training."""
    model = build(bits, beta=BETA)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss=loss, **options)
    return model


def train_on_batch(batch: int, bits: Bits) -> Timer:
    """Keras's call for one batch."""
    model, (x, y), batches = compiled(bits), arrays(), rows_of(batch)

    def timer(steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            rows = next(batches)
            start = time.perf_counter()
            model.train_on_batch(x[rows], y[rows])
            times.append(1e6 * (time.perf_counter() - start))
        return times

    return timer


def fit(batch: int, bits: Bits) -> Timer:
    """Keras's loop, which takes 32 batches a call: each epoch passes once over the rows."""
    model, (x, y) = compiled(bits, steps_per_execution=32), arrays()
    whole = ROWS // batch
    x, y = x[: whole * batch], y[: whole * batch]

    def timer(steps: int) -> list[float]:
        epochs = max(2, -(-steps // whole))
        marks: list[float] = []
        mark = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: marks.append(time.perf_counter()),
            on_epoch_end=lambda *_: marks.append(time.perf_counter()),
        )
        model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=[mark])
        return [1e6 * (end - begin) / whole for begin, end in zip(marks[::2], marks[1::2], strict=True)][1:]

    return timer


WAYS: dict[str, Callable[[int, Bits], Timer]] = {
    "pure": pure,
    "scan": scan,
    "train_on_batch": train_on_batch,
    "fit": fit,
}


def serve(way: str, bits: Bits) -> None:
    """Answer `batch steps` on standard input with the steps' times in microseconds."""
    output = sys.stdout
    sys.stdout = sys.stderr
    timers: dict[int, Timer] = {}
    for line in sys.stdin:
        batch, steps = (int(part) for part in line.split())
        if batch not in timers:
            timers[batch] = WAYS[way](batch, bits)
            timers[batch](WARM_UP)
        print(json.dumps(timers[batch](steps)), file=output, flush=True)


def main() -> None:
    """Print a line of JSON a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--bits-regularizer", type=float, help="strength of the L1 on the bits; 0 leaves it out")
    options = parser.parse_args()
    bits = Bits(regularizer=options.bits_regularizer)
    if options.worker:
        serve(options.way[0], bits)
        return
    for batch in options.batch:
        for way in options.way:
            timer = WAYS[way](batch, bits)
            timer(WARM_UP)
            times = timer(options.steps)
            record = {"peer": "hgq2", "way": way, "batch": batch, "samples": len(times)}
            record |= {"median": round(statistics.median(times), 1), "minimum": round(min(times), 1)}
            print(json.dumps({**record, **threads(), "versions": versions()}), flush=True)


if __name__ == "__main__":
    main()
