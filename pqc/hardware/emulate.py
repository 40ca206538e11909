"""Compile a written project with g++ and run it, in a process of its own: hls4ml's C++ can abort the one it is in.

The child is `python -m pqc.hardware.emulate SPEC.json`; the files are its only link to the parent.
"""

from __future__ import annotations

import json
import os
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
LAST_LINES = 12


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
        spec = {
            "project": str(project.folder.resolve()),
            "input": f"{scratch}/in.npy",
            "output": f"{scratch}/out.npz",
        }
        np.save(spec["input"], flat)
        file = Path(scratch) / "spec.json"
        file.write_text(json.dumps(spec))
        _run(file, project)
        with np.load(spec["output"]) as found:
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
    tail = "\n".join(project.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    raise HardwareError(
        f"the C++ emulation {reason}; the last lines of its log are\n{tail}",
        at=str(project.folder),
        hint=f"read {project.log}, or compile by hand with ./build_lib.sh in that folder",
    )


def main(spec: Path) -> None:
    """The child: link the project, compile it, run every sample, and save the outputs."""
    from hls4ml.converters import link_existing_project

    paths = json.loads(spec.read_text())
    model = link_existing_project(paths["project"])
    model.compile()
    inputs = np.load(paths["input"])
    outputs = model.predict(inputs)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    np.savez(paths["output"], *(np.reshape(output, (len(inputs), -1)) for output in outputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
