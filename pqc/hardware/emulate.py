"""Compile a written project with g++ and run it, in a process of its own: hls4ml's C++ can abort the one it is in.

The child is `python -m pqc.hardware.emulate SPEC.json`; the files are its only link to the parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pqc.errors import EnvironmentFault, HardwareError
from pqc.hardware.project import Project

Progress = Callable[[str], None]
LAST_LINES = 8


def emulate(project: Project, samples: np.ndarray, progress: Progress | None = None) -> list[np.ndarray]:
    """Compile `project` and run its C++ on `samples`.

    Args:
        samples: float32, of shape (samples, *input), channels first as the network takes them.
        progress: is told in a word what is going on.

    Returns:
        for each output of the network, float64 values of shape (samples, elements), in the network's order.

    Raises:
        EnvironmentFault: there is no g++.
        HardwareError: the compiler or the program failed.
    """
    if shutil.which("g++") is None:
        raise EnvironmentFault("g++ is not on the PATH", hint="install a C++ compiler, for example Debian's `g++`")
    flat = np.ascontiguousarray(samples.reshape(len(samples), -1)[:, project.layout.input], dtype=np.float64)
    if progress is not None:
        progress("compile and run the C++")
    with tempfile.TemporaryDirectory(prefix="pqc-hls-") as scratch:
        sizes = [len(project.layout.outputs[project.positions.index(place)]) for place in sorted(project.positions)]
        spec = {
            "project": str(project.folder.resolve()),
            "input": f"{scratch}/in.npy",
            "output": f"{scratch}/out.npz",
            "sizes": sizes,
        }
        np.save(f"{scratch}/in.npy", flat)
        file = Path(scratch) / "spec.json"
        file.write_text(json.dumps(spec))
        _run(file, project)
        with np.load(f"{scratch}/out.npz") as found:
            arrays = [found[f"arr_{index}"] for index in project.positions]
    return [array[:, order] for array, order in zip(arrays, project.layout.outputs, strict=True)]


def _run(spec: Path, project: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with project.log.open("a") as log:
        code = subprocess.run(
            [sys.executable, "-m", "pqc.hardware.emulate", str(spec)], stdout=log, stderr=log, env=environment
        ).returncode
    if code == 0:
        return
    reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
    raise HardwareError(
        f"the C++ emulation {reason}; its log says\n{_telling_lines(project.log)}",
        at=str(project.folder),
        hint=f"read {project.log}, or compile by hand with ./build_lib.sh in that folder",
    )


def _telling_lines(log: Path) -> str:
    """The last lines of a log that speak of errors, or just the last lines."""
    lines = log.read_text(errors="replace").splitlines()
    telling = [line for line in lines if re.search(r"error|assert|terminate|malloc", line, re.IGNORECASE)]
    return "\n".join((telling or lines)[-LAST_LINES:])


def main(spec: Path) -> None:
    """The child: compile the project, link it, run every sample, and save the outputs in hls4ml's order."""
    given = json.loads(spec.read_text())
    folder = Path(given["project"])
    for stale in (folder / "firmware").glob("*.so"):
        stale.unlink()
    if code := subprocess.call(["./build_lib.sh"], cwd=folder):
        sys.exit(code)
    run = ctypes.CDLL(str(next((folder / "firmware").glob("*.so")))).myproject_double
    inputs = np.load(given["input"])
    outputs = [np.zeros((len(inputs), size)) for size in given["sizes"]]
    for sample, row in enumerate(inputs):
        run(*(ctypes.c_void_p(array.ctypes.data) for array in (row, *(output[sample] for output in outputs))))
    np.savez(given["output"], *outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
