"""What a machine needs, and whether it is there."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

from pqc import engine
from pqc.errors import EnvironmentFault

PINNED = {"onnx": "1.17.0", "qonnx": "1.0.0", "hls4ml": "1.3.0"}
REPORTED = ("pqc", "onnx", "onnx-ir", "onnxscript", "onnxruntime-training-cpu", "qonnx", "hls4ml", "numpy")


@dataclass(frozen=True)
class Finding:
    """One thing checked: whether it is well, what was found, and what to run if not."""

    name: str
    ok: bool
    found: str
    hint: str = ""


def versions() -> dict[str, str]:
    """Versions of pqc, Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def doctor(*, repair: bool = False, device: str = "cpu") -> list[Finding]:
    """Check the engine, the compiler and the packages.

    Args:
        repair: reinstall the training build of the engine where another build has overwritten it.
        device: which build: `cpu` or `cuda`.

    Raises:
        EnvironmentFault: the repair failed.
    """
    if repair and not _engine(device).ok:
        _repair(device)
    return [_python(), _engine(device), *(_package(name, version) for name, version in PINNED.items()), _compiler()]


def _python() -> Finding:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    hint = "onnxruntime-training has wheels for Python 3.10 to 3.12 only; make a virtual environment with one of them"
    return Finding("python", fits, platform.python_version(), "" if fits else hint)


def _engine(device: str) -> Finding:
    code = (
        "from onnxruntime.capi import _pybind_state as s;"
        "print(hasattr(s, 'GradientGraphBuilder'), 'CUDAExecutionProvider' in s.get_available_providers())"
    )
    # A process of its own: this one may hold the wrong build already.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    hint = f"run: {engine.repair_command(device)}"
    if result.returncode:
        return Finding("engine", False, "onnxruntime-training is not installed", hint)
    training, cuda = (word == "True" for word in result.stdout.split())
    if not training:
        return Finding("engine", False, "another build of onnxruntime has overwritten it", hint)
    if device == "cuda" and not cuda:
        return Finding("engine", False, "the build in place is the one without CUDA", hint)
    return Finding("engine", True, f"onnxruntime-training {engine.ENGINE_VERSION}{' with CUDA' if cuda else ''}")


def _repair(device: str) -> None:
    command = [sys.executable, "-m", *engine.repair_command(device).split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFault(
            f"the engine could not be reinstalled: {last}", hint=f"run: {engine.repair_command(device)}"
        )


def _package(name: str, version: str) -> Finding:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"run: pip install {name}=={version}")
    hint = "" if found == version else f"run: pip install {name}=={version}"
    return Finding(name, found == version, found, hint)


def _compiler() -> Finding:
    path = shutil.which("g++")
    if path is None:
        return Finding("g++", False, "not installed", "install g++ (on Debian: apt-get install g++)")
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Finding("g++", result.returncode == 0, result.stdout.splitlines()[0] if result.stdout else path)


def require_compiler() -> None:
    """Fail early where the firmware could not be compiled.

    Raises:
        EnvironmentFault: there is no g++.
    """
    found = _compiler()
    if not found.ok:
        raise EnvironmentFault("g++ is needed to compile the firmware's emulation", hint=f"{found.hint}; or --no-hls")
